"""Weights of their own for parts of the candidates: found where planted, not where there is nothing, and served so."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.schema import Candidates, Histories, Holdout, Mask
from eval.metrics import ndcg_at_k, relevance_of
from fusion.linear import LOG_FLOOR, Transform
from index.faiss_index import FlatIndex
from recommend.reasons import lifts
from retrieval.fit import FittedRetriever, Recipe
from retrieval.folder import CARD, load_retriever, read_card, save_retriever
from retrieval.own_weights import (
    OwnWeights,
    Part,
    after_short,
    cold_columns,
    of_cold,
    parts_by_source,
    short_columns,
    source_of,
    with_cold,
    with_short,
)
from retrieval.retriever import LIKENESS, TEXT, TRANSITIONS, Retriever
from retrieval.trend import EVER, Trend
from retrieval.weighing import AskedPart, fitted_fusion, with_fitted_fusion
from tests.retrieval.toy import item_texts, random_log, retriever, text_vectors

USERS, DEPTH = 400, 12
PLAIN = retriever(20)
COLUMNS = {"recency": Transform.RAW, "sequence": Transform.RAW}


def planted(*, alike: bool) -> tuple[Candidates, Histories]:
    """After a short history `recency` tells what comes next, after a long one `sequence`; or both tell half of it."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, USERS, DEPTH)).astype(np.float32)
    is_short = np.arange(USERS) % 2 == 0
    told = first + second if alike else np.where(is_short[:, None], first, second)
    target = (4 * told + rng.gumbel(size=told.shape)).argmax(axis=1)
    rows = np.broadcast_to(np.arange(DEPTH), told.shape).copy()
    sources = with_short({"recency": first, "sequence": second}, is_short)
    return Candidates(rows, np.zeros(told.shape, dtype=np.float32), sources), Histories.of(target[:, None].tolist())


@pytest.mark.parametrize("alike", [False, True])
def test_columns_of_short_histories_are_kept_only_where_cross_validation_gains_by_them(alike):
    candidates, targets = planted(alike=alike)
    part = AskedPart(Part.SHORT, short_columns(COLUMNS), USERS // 2, 0)
    found = part.tried(candidates, targets, COLUMNS, PLAIN.trend)
    assert found.kept is not alike
    if alike:
        return
    weights = fitted_fusion(candidates, targets, {**COLUMNS, **part.columns}, PLAIN.trend).weights
    assert set(weights) == {name for source in COLUMNS for name in (source, after_short(source))}
    after_a_short_one = {source: weights[source] + weights[after_short(source)] for source in COLUMNS}
    assert after_a_short_one["recency"] > 3 * abs(after_a_short_one["sequence"])
    assert weights["sequence"] > 2 * abs(weights["recency"])


def test_a_slice_of_few_users_keeps_near_the_weights_of_all():
    candidates, targets = planted(alike=False)
    few = np.flatnonzero((np.arange(USERS) % 2 == 1) | (np.arange(USERS) < 8))
    columns = {**COLUMNS, **short_columns(COLUMNS)}
    own = []
    for places in (few, np.arange(USERS)):
        weights = fitted_fusion(candidates.take(places), targets.take(places), columns, PLAIN.trend).weights
        own.append(weights[after_short("recency")])
    assert 0 <= own[0] < 0.5 * own[1]


def with_weights(found: Retriever, own: dict[str, float]) -> Retriever:
    """The same with further columns of these weights."""
    columns = {**short_columns(found.fusion.transforms), **cold_columns(found.fusion.transforms, found.trend)}
    fusion = replace(
        found.fusion,
        transforms={**found.fusion.transforms, **{name: columns[name] for name in own}},
        weights={**found.fusion.weights, **own},
        typical={**found.fusion.typical, **{name: found.fusion.typical[source_of(name)] for name in own}},
    )
    return replace(found, fusion=fusion)


def with_settings(found: Retriever, **settings: int) -> Retriever:
    return replace(found, config=found.config.model_copy(update=settings))


def test_a_short_history_is_served_by_its_own_weights_and_a_long_one_by_those_of_all():
    found = with_weights(PLAIN, {after_short("recency"): 0.7, after_short(TRANSITIONS): 0.9})
    found = with_settings(found, short_history=2)
    histories, items = Histories.of([[3, 5], [3, 5, 9]]), np.arange(20)
    before, after = (one.weighted_sums(histories, items) for one in (PLAIN, found))
    sources = PLAIN.scored(np.broadcast_to(items, (2, 20)).copy(), histories)
    order = np.argsort(sources.item_rows, axis=1)
    recency = np.take_along_axis(sources.sources["recency"], order, 1)
    following = np.take_along_axis(sources.sources[TRANSITIONS], order, 1)
    logs = np.log(np.maximum(following, 0) / PLAIN.fusion.typical[TRANSITIONS] + 0.01)
    np.testing.assert_allclose(after[0], (before + 0.7 * recency + 0.9 * logs)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.diff(after[1] - before[1]), 0, atol=1e-4)  # all alike, so that the order stays
    retrieved = found.candidates(histories.take(np.array([0])), 8)
    told = lifts(found, retrieved)
    assert set(told) <= set(PLAIN.fusion.weights)
    np.testing.assert_allclose(sum(told.values()), 1, rtol=1e-4)
    parts = found.fusion.parts(retrieved)
    np.testing.assert_allclose(
        parts_by_source(found.fusion, retrieved)["recency"], parts["recency"] + parts[after_short("recency")]
    )
    assert LIKENESS in told


# --- cold items

SHELF = 24
"""Items, of which the odd ones are cold."""
COLD = np.arange(SHELF) % 2 == 1
SHELF_TREND = Trend.fit(Histories.of([np.flatnonzero(~COLD).tolist() * 3]), SHELF, ())
SHELF_COLUMNS = {TEXT: Transform.RAW, TRANSITIONS: Transform.LOG, EVER: Transform.RAW}


def shelf(users: int, *, seed: int, rarity: float = 0.0, alike: bool = False) -> tuple[Candidates, Histories, Mask]:
    """Planted: text tells what comes next, for cold items on a fifth of the scale and two units lower.

    Or, where all are alike, on one scale. Cold items are taken exp(-`rarity`) times as often as their text says. The
    last array says whose target is cold.
    """
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((users, SHELF))
    target = (3 * truth - rarity * COLD + rng.gumbel(size=truth.shape)).argmax(axis=1)
    text = truth if alike else np.where(COLD, 0.2 * truth - 2, truth)
    followed = rng.gamma(1.0, size=truth.shape) * (rng.random(truth.shape) < 0.5)
    rows = np.broadcast_to(np.arange(SHELF), truth.shape).copy()
    plain = {TEXT: text.astype(np.float32), TRANSITIONS: followed.astype(np.float32), EVER: SHELF_TREND.ever[rows]}
    sources = with_cold(plain, SHELF_TREND.untaken(rows), SHELF_TREND)
    candidates = Candidates(rows, np.zeros(rows.shape, dtype=np.float32), sources)
    return candidates, Histories.of(target[:, None].tolist()), COLD[target]


def ndcg10(candidates: Candidates, targets: Histories, columns: dict[str, Transform], learnt_from) -> np.ndarray:
    scores = fitted_fusion(*learnt_from, columns, SHELF_TREND).score(candidates)
    return ndcg_at_k(relevance_of(candidates.ranked_by(scores).head(10), targets), targets.lengths, k=10)


def asked_about_cold(targets: int, *, needed: int) -> AskedPart:
    return AskedPart(Part.COLD, cold_columns(SHELF_COLUMNS, SHELF_TREND), targets, needed)


def test_cold_items_on_another_scale_are_placed_by_weights_of_their_own_for_users_held_out():
    *learnt_from, is_cold = shelf(1500, seed=0, rarity=2.0)
    part = asked_about_cold(int(is_cold.sum()), needed=50)
    found = part.tried(*learnt_from, SHELF_COLUMNS, SHELF_TREND)
    assert found.kept
    candidates, targets, cold = shelf(1500, seed=1, rarity=2.0)
    shared = ndcg10(candidates, targets, SHELF_COLUMNS, learnt_from)
    own = ndcg10(candidates, targets, {**SHELF_COLUMNS, **part.columns}, learnt_from)
    assert found.gain == pytest.approx((own - shared).mean(), abs=0.02)
    assert own[cold].mean() > shared[cold].mean() + 0.1
    assert own[~cold].mean() > shared[~cold].mean() - 0.01
    assert own.mean() > shared.mean() + 0.02


def test_where_cold_items_are_like_the_others_they_get_no_weights_of_their_own():
    *learnt_from, is_cold = shelf(400, seed=0, alike=True)
    found = asked_about_cold(int(is_cold.sum()), needed=50).tried(*learnt_from, SHELF_COLUMNS, SHELF_TREND)
    assert not found.kept
    assert "Cold items share the weights of all: own ones gave" in found.words


def test_few_cold_targets_are_not_learnt_from_and_that_is_told():
    *learnt_from, _ = shelf(400, seed=0, rarity=2.0)
    found = asked_about_cold(49, needed=50).tried(*learnt_from, SHELF_COLUMNS, SHELF_TREND)
    assert found == OwnWeights(Part.COLD, 49, 50, None, kept=False)
    assert found.words == (
        "Cold items share the weights of all: own ones were not tried on 49 targets of group B, "
        "where at least 50 are asked for."
    )


def test_weights_of_few_cold_targets_keep_near_those_of_all():
    columns = {**SHELF_COLUMNS, **cold_columns(SHELF_COLUMNS, SHELF_TREND)}
    few, many = (
        fitted_fusion(*shelf(400, seed=0, rarity=rarity)[:2], columns, SHELF_TREND).weights[of_cold(TEXT)]
        for rarity in (6.0, 0.0)
    )
    assert abs(few) < 0.5 * many


LOG = random_log(20)
SOME = Histories.of([[3, 5], [2], [0, 1, 7, 4]])


def partly_cold(**settings: int) -> Retriever:
    """Of twenty items the last eight are cold."""
    known = Histories.of([[row for row in LOG[user] if row < 12] for user in range(len(LOG))])
    found = retriever(20, train=known)
    recency = found.config.recency.model_copy(update={"copies": 2})  # as it is there
    return replace(found, config=found.config.model_copy(update={"recency": recency, **settings}))


def test_cold_items_are_served_by_their_own_weights_and_others_exactly_as_before():
    plain, own = partly_cold(), {of_cold("recency"): 0.7, of_cold(TRANSITIONS): 0.9, of_cold(EVER): -2.0}
    found = with_settings(with_weights(plain, own), cold_targets=1)
    items = np.arange(20)
    before, after = (one.weighted_sums(SOME, items) for one in (plain, found))
    np.testing.assert_array_equal(after[:, :12], before[:, :12])
    scored = plain.scored(np.broadcast_to(items, (3, 20)).copy(), SOME)
    order = np.argsort(scored.item_rows, axis=1)
    recency, following = (np.take_along_axis(scored.sources[name], order, 1) for name in ("recency", TRANSITIONS))
    logs = np.log(np.maximum(following, 0) / plain.fusion.typical[TRANSITIONS] + LOG_FLOOR) - np.log(LOG_FLOOR)
    expected = before + 0.7 * recency + 0.9 * logs + 2.0 * np.log(2)
    np.testing.assert_allclose(after[:, 12:], expected[:, 12:], rtol=1e-4, atol=1e-4)
    assert following[:, 12:].max() > 0
    retrieved = found.candidates(SOME.take(np.array([0])), 8)
    assert set(parts_by_source(found.fusion, retrieved)) <= set(plain.fusion.weights)


def test_a_setting_alone_changes_no_score():
    plain = partly_cold()
    items = np.arange(20)
    for settings in ({"cold_targets": 1}, {"cold_targets": 1, "short_history": 2}):
        found = partly_cold(**settings)
        np.testing.assert_array_equal(found.weighted_sums(SOME, items), plain.weighted_sums(SOME, items))
        lists = [one.candidates(SOME, 8) for one in (plain, found)]
        np.testing.assert_array_equal(lists[0].item_rows, lists[1].item_rows)
        np.testing.assert_array_equal(lists[0].score, lists[1].score)
    assert set(plain.scored(np.arange(20)[None], SOME.take(np.array([0]))).sources) == set(plain.fusion.transforms)


def asked(users: int, *, seed: int, cold_share: float) -> Holdout:
    """Whose target is a cold item for a share of them: the one nearest in text, where warm ones follow in a row."""
    rng = np.random.default_rng(seed)
    lists = [rng.choice(12, 4, replace=False).tolist() for _ in range(users)]
    cold = rng.random(users) < cold_share
    last, text = np.array([rows[-1] for rows in lists]), text_vectors(20)
    targets = np.where(cold, 12 + (text[last] @ text[12:].T).argmax(axis=1), (last + 1) % 12)
    return Holdout("validation", np.arange(users), Histories.of(lists), Histories.of(targets[:, None].tolist()))


def test_a_fit_counts_its_cold_targets_and_shares_the_weights_bit_for_bit_where_they_are_few():
    validation, log = asked(60, seed=3, cold_share=0.2), []
    found = with_fitted_fusion(partly_cold(cold_targets=40, per_source=20), validation, log.append)
    plain = with_fitted_fusion(partly_cold(per_source=20), validation, lambda entry: None)
    assert plain.own == ()
    cold = int((validation.targets.item_rows >= 12).sum())
    assert found.own == (OwnWeights(Part.COLD, cold, 40, None, kept=False),)
    assert log[0] == {"stage": "fusion of cold items", "targets": cold, "gain_of_ndcg@10": None, "kept": False}
    assert found.retriever.fusion == plain.retriever.fusion
    items = np.arange(20)
    scores = [one.retriever.weighted_sums(SOME, items) for one in (found, plain)]
    np.testing.assert_array_equal(*scores)


def test_both_parts_may_have_weights_of_their_own_and_those_of_cold_items_are_of_sources_alone():
    validation = asked(200, seed=4, cold_share=0.5)
    settings = {"cold_targets": 20, "short_history": 4, "per_source": 20}
    found = with_fitted_fusion(partly_cold(**settings), validation, lambda entry: None)
    short, cold = found.own
    assert (short.part, cold.part) == (Part.SHORT, Part.COLD)
    assert short.targets > cold.targets >= 20  # every history is short
    assert cold.kept  # half of the targets are items that nobody took
    own = set(found.retriever.fusion.weights) - set(partly_cold().fusion.weights)
    assert {name for name in own if name not in short_columns(partly_cold().fusion.weights)} == {
        of_cold(name) for name in partly_cold().fusion.weights if name not in partly_cold().trend.windows
    }


def saved(folder, found: Retriever, own: tuple[OwnWeights, ...] = ()) -> FittedRetriever:
    recipe = Recipe(found.transitions.config, {}, found.towers.weights, found.fusion)
    fitted = FittedRetriever(found, text_vectors(20), recipe, [], None, 0.5, own)
    save_retriever(folder, fitted, text_vectors="key")
    return fitted


def test_own_weights_are_saved_with_the_retriever(tmp_path):
    told = (OwnWeights(Part.SHORT, 3, 0, -0.01, kept=False), OwnWeights(Part.COLD, 60, 50, 0.02, kept=True))
    found = with_weights(
        partly_cold(cold_targets=50), {of_cold(TEXT): 0.7, of_cold(EVER): -2.0, of_cold(LIKENESS): 0.1}
    )
    saved(tmp_path, found, told)
    assert read_card(tmp_path).own_weights == told
    loaded = load_retriever(tmp_path, texts=item_texts(20), text_vectors=text_vectors(20), index=FlatIndex)
    assert loaded.fusion == found.fusion
    items = np.arange(20)
    np.testing.assert_array_equal(loaded.weighted_sums(SOME, items), found.weighted_sums(SOME, items))
    assert not np.allclose(loaded.weighted_sums(SOME, items), partly_cold().weighted_sums(SOME, items))


def test_a_retriever_saved_before_there_was_the_setting_scores_as_it_did(tmp_path):
    found = partly_cold()
    saved(tmp_path, found)
    card = json.loads((tmp_path / CARD).read_text())
    del card["own_weights"], card["config"]["cold_targets"]
    (tmp_path / CARD).write_text(json.dumps(card))
    loaded = load_retriever(tmp_path, texts=item_texts(20), text_vectors=text_vectors(20), index=FlatIndex)
    assert (loaded.config.cold_targets, read_card(tmp_path).own_weights) == (0, ())
    np.testing.assert_array_equal(loaded.weighted_sums(SOME, np.arange(20)), found.weighted_sums(SOME, np.arange(20)))
