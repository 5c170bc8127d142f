"""What each source is worth, worked out again from the scores of all candidates by plain loops."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.schema import Candidates, Histories, Holdout
from fusion.linear import column
from fusion.network import NETWORK, FusionNetwork, NetworkConfig
from pipeline import contributions as module
from pipeline.contributions import TOWERS, TREND, JudgedSources, groups_of, judge_sources
from retrieval.own_weights import cold_columns, of_cold
from retrieval.retriever import LAST_TEXT, LIKENESS, TEXT, TRANSITIONS, Retriever
from retrieval.trend import EVER
from retrieval.weighing import fitted_fusion, with_fitted_fusion
from tests.retrieval.toy import nobody, random_log, retriever

N, DEPTH, SERVED = 40, 6, 10
RETRIEVER = retriever(N)
NAMES = [TOWERS, "recency", "sequence", TRANSITIONS, LIKENESS, TEXT, TREND]


def holdout(users: int, *, seed: int, shortest: int = 1) -> Holdout:
    """Planted: whoever took item i last takes i + 1 next, so that sources have something to find."""
    lists = [items.tolist() for items in map(np.unique, _lists(users, seed, shortest))]
    targets = [[(items[-1] + 1) % N] if items else [3] for items in lists]
    return Holdout("validation", np.arange(users), Histories.of(lists), Histories.of(targets))


def _lists(users: int, seed: int, shortest: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N - 1, rng.integers(shortest, 7)) for _ in range(users)]


VALIDATION, ASKED = holdout(70, seed=1), holdout(50, seed=2, shortest=0)


def judged(
    found: Retriever = RETRIEVER,
    *,
    asked: Holdout = ASKED,
    validation: Holdout = VALIDATION,
    exclude_known: bool = True,
) -> JudgedSources:
    return judge_sources(found, asked, validation=validation, served=SERVED, depth=DEPTH, exclude_known=exclude_known)


@pytest.fixture(scope="module")
def made() -> JudgedSources:
    return judged()


def ndcg10(rows: list[int], target: int) -> float:
    return 1 / np.log2(rows.index(target) + 2) if target in rows[:10] else 0.0


def target_of(user: int) -> int:
    return int(ASKED.targets[user][0])


def pool_of(user: int, found: Retriever = RETRIEVER) -> dict[int, dict[str, float]]:
    """Item row → source → score, of one user's whole union."""
    union = found.unions(ASKED.histories.take(np.array([user])), SERVED)
    return {
        int(row): {name: float(scores[0, place]) for name, scores in union.sources.items()}
        for place, row in enumerate(union.item_rows[0])
        if row >= 0
    }


def ranked(pool: dict[int, dict[str, float]], score: Any) -> list[int]:
    """Ties by the lower row."""
    return sorted(pool, key=lambda row: (-np.float32(score(pool[row])), row))


def test_the_sources_are_named_once_each_and_towers_both_together_and_apart(made):
    assert groups_of(RETRIEVER) == {
        TOWERS: ("recency", "sequence"),
        "recency": ("recency",),
        "sequence": ("sequence",),
        TRANSITIONS: (TRANSITIONS,),
        LIKENESS: (LIKENESS,),
        TEXT: (TEXT, LAST_TEXT),
        TREND: RETRIEVER.trend.names,
    }
    assert list(made.alone) == [found.source for found in made.contributions] == NAMES


@pytest.mark.parametrize("name", ["recency", "sequence", TRANSITIONS, TOWERS])
def test_a_source_alone_orders_the_candidates_by_its_own_scores(made, name):
    weights = (
        {str(kind): weight for kind, weight in RETRIEVER.towers.weights.items()} if name == TOWERS else {name: 1.0}
    )
    gains = []
    for user in range(len(ASKED)):
        if not len(ASKED.histories[user]):
            continue
        expected = ranked(pool_of(user), lambda scores: sum(w * scores[n] for n, w in weights.items()))
        assert made.alone[name].item_rows[user].tolist() == expected[:DEPTH]
        gains.append(ndcg10(expected[:DEPTH], target_of(user)))
    nothing_known = ASKED.histories.lengths == 0
    popular = RETRIEVER.candidates(Histories.of([[]]), DEPTH).item_rows[0].tolist()
    assert nothing_known.sum() > 2
    assert all(rows.tolist() == popular for rows in made.alone[name].item_rows[nothing_known])
    gains += [ndcg10(popular, 3)] * int(nothing_known.sum())
    reported = next(found.alone for found in made.contributions if found.source == name)
    assert reported == pytest.approx(np.mean(gains), abs=1e-6)


def seen_by_the_fit(found: Retriever) -> Candidates:
    """Weights are fitted on what towers find that are not weighed yet."""
    alike = replace(found.towers, weights=dict.fromkeys(found.towers.weights, 1.0))
    return replace(found, towers=alike).unions(VALIDATION.histories)


def weighed_anew(left_out: Collection[str]) -> list[float]:
    """NDCG@10 of each user by all sources but some, their weights fitted on validation."""
    columns = {other: how for other, how in RETRIEVER.fusion.transforms.items() if other not in left_out}
    fusion = fitted_fusion(seen_by_the_fit(RETRIEVER), VALIDATION.targets, columns, RETRIEVER.trend)
    assert not set(fusion.weights) & set(left_out)
    union = RETRIEVER.unions(ASKED.histories, SERVED)
    score = sum(
        fusion.weights[other] * column(union, other, how, typical=fusion.typical[other])
        for other, how in columns.items()
    )
    gains = []
    for user in range(len(ASKED)):
        own = dict(zip(union.item_rows[user].tolist(), score[user].tolist(), strict=True))
        pool = {row: {"score": own[row]} for row in own if row >= 0}
        popular = RETRIEVER.candidates(Histories.of([[]]), SERVED).item_rows[0].tolist()
        rows = ranked(pool, lambda s: s["score"]) if len(ASKED.histories[user]) else popular
        gains.append(ndcg10(rows, target_of(user)))
    return gains


@pytest.mark.parametrize("name", NAMES)
def test_with_and_without_a_source_the_others_are_weighed_anew_on_the_same_candidates(made, name):
    without, together = weighed_anew(groups_of(RETRIEVER)[name]), weighed_anew(())
    test = next(found.test for found in made.contributions if found.source == name)
    assert test.theirs == pytest.approx(np.mean(without), abs=1e-6)
    assert test.ours == pytest.approx(np.mean(together), abs=1e-6)
    assert test.difference == pytest.approx(np.mean(together) - np.mean(without), abs=1e-6)


def test_a_source_without_weight_adds_nothing_and_all_together_are_what_is_served():
    fresh = replace(RETRIEVER, towers=replace(RETRIEVER.towers, weights=dict.fromkeys(RETRIEVER.towers.weights, 1.0)))
    found = with_fitted_fusion(fresh, VALIDATION, lambda entry: None).retriever
    assert found.towers.weights != fresh.towers.weights
    silent = [name for name, sources in groups_of(found).items() if not any(map(found.fusion.weights.get, sources))]
    assert silent
    served = found.candidates(ASKED.histories, SERVED).item_rows.tolist()
    reached = np.mean([ndcg10(served[user], target_of(user)) for user in range(len(ASKED))])
    for one in judged(found).contributions:
        assert one.test.ours == pytest.approx(reached)
        if one.source in silent:
            assert (one.test.difference, one.test.better, one.test.worse) == (0, 0, 0)
            assert all(part.ours == part.theirs for part in one.slices.values())


KNOWN = 30
"""Items before this one were taken in training, the others are cold."""


@pytest.fixture(scope="module")
def weighed() -> Retriever:
    """With weights of their own for cold items."""
    log = random_log(N)
    found = retriever(N, train=Histories.of([[row % KNOWN for row in log[user]] for user in range(len(log))]))
    found = replace(found, config=found.config.model_copy(update={"cold_targets": 5, "per_source": 20}))
    made = with_fitted_fusion(found, VALIDATION, lambda entry: None)
    columns = {**found.fusion.transforms, **cold_columns(found.fusion.transforms, found.trend)}
    seen = made.retriever.unions(VALIDATION.histories)
    return replace(made.retriever, fusion=fitted_fusion(seen, VALIDATION.targets, columns, found.trend))


def test_a_source_is_told_by_cold_items_and_history_lengths_too(weighed):
    found = judged(weighed)
    cold = weighed.trend.untaken(np.arange(N))
    lengths = ASKED.histories.lengths
    parts = {
        "target_item/warm": [user for user in range(len(ASKED)) if not cold[target_of(user)]],
        "target_item/cold": [user for user in range(len(ASKED)) if cold[target_of(user)]],
        "history_length/0": np.flatnonzero(lengths == 0),
        "history_length/1-4": np.flatnonzero((lengths >= 1) & (lengths <= 4)),
        "history_length/5-9": np.flatnonzero(lengths >= 5),
    }
    assert min(map(len, parts.values())) > 1
    told_of_all = found.contributions[0].slices
    for contribution in found.contributions:
        assert set(contribution.slices) == set(parts)
        alone = found.alone[contribution.source].item_rows.tolist()
        for name, users in parts.items():
            told = contribution.slices[name]
            assert told.users == len(users)
            assert told.alone == pytest.approx(np.mean([ndcg10(alone[user], target_of(user)) for user in users]))
            assert told.ours == told_of_all[name].ours
        for kind, of_kind in (("target_item", list(parts)[:2]), ("history_length", list(parts)[2:])):
            for side in ("ours", "theirs"):
                whole = sum(getattr(contribution.slices[name], side) * len(parts[name]) for name in of_kind)
                assert whole / len(ASKED) == pytest.approx(getattr(contribution.test, side)), kind


def test_without_a_source_its_columns_for_cold_items_are_gone_too(weighed):
    assert of_cold(TEXT) in weighed.fusion.weights
    assert of_cold(EVER) in weighed.fusion.weights
    assert list(groups_of(weighed)) == NAMES
    columns = {name: how for name, how in weighed.fusion.transforms.items() if not name.startswith(TEXT + " ")}
    columns = {name: how for name, how in columns.items() if name not in (TEXT, LAST_TEXT, of_cold(LAST_TEXT))}
    assert of_cold(TEXT) not in columns
    assert of_cold(TRANSITIONS) in columns
    fusion = fitted_fusion(seen_by_the_fit(weighed), VALIDATION.targets, columns, weighed.trend)
    union = weighed.unions(ASKED.histories, SERVED)
    some = np.flatnonzero(ASKED.histories.lengths > 0)
    # Ties by the lower row.
    by_row = union.take(some).ranked_by(-union.item_rows[some].astype(np.float32))
    ranked_rows = by_row.ranked_by(fusion.score(by_row)).item_rows.tolist()
    gains = [ndcg10(rows, target_of(user)) for user, rows in zip(some, ranked_rows, strict=True)]
    told = next(found for found in judged(weighed).contributions if found.source == TEXT).slices
    theirs = sum(part.theirs * part.users for name, part in told.items() if name.startswith("history_length/"))
    theirs -= told["history_length/0"].theirs * told["history_length/0"].users
    assert theirs == pytest.approx(sum(gains))


def test_ties_owe_nothing_to_the_fusion():
    """A source that says nothing finds nothing: the fusion's order must not shine through."""
    telling = random_log(N, users=5)
    silent = replace(RETRIEVER.transitions, weights=RETRIEVER.transitions.weights * 0)
    found = judged(replace(retriever(N, train=telling), transitions=silent))
    rows = found.alone[TRANSITIONS].item_rows[ASKED.histories.lengths > 0]
    assert all(line[line >= 0].tolist() == sorted(line[line >= 0]) for line in rows)


def test_users_are_looked_at_some_at_a_time(made, monkeypatch):
    monkeypatch.setattr(module, "USERS_AT_ONCE", 7)
    again = judged()
    for name in NAMES:
        np.testing.assert_array_equal(again.alone[name].item_rows, made.alone[name].item_rows)
    for one, other in zip(again.contributions, made.contributions, strict=True):
        assert one.test.difference == pytest.approx(other.test.difference)


def test_without_validation_nothing_can_be_weighed_anew_and_no_contribution_is_claimed(made):
    found = judged(validation=nobody())
    assert found.contributions == []
    for name in (TOWERS, "recency", TRANSITIONS):
        np.testing.assert_array_equal(found.alone[name].item_rows, made.alone[name].item_rows)


def test_repeats_allowed_are_judged_with_repeats():
    found = judged(exclude_known=False).alone["recency"]
    asked = ASKED.histories
    assert any(set(found.item_rows[user]) & set(asked[user].tolist()) for user in range(len(ASKED)))


def test_one_kind_of_towers_is_the_towers():
    members = RETRIEVER.towers.members[:2]
    towers = replace(RETRIEVER.towers, members=members)
    kept = {name: how for name, how in RETRIEVER.fusion.transforms.items() if name != "sequence"}
    one = replace(RETRIEVER, towers=towers, fusion=replace(RETRIEVER.fusion, transforms=kept))
    assert list(groups_of(one)) == [TOWERS, TRANSITIONS, LIKENESS, TEXT, TREND]


@pytest.fixture(scope="module")
def networked() -> Retriever:
    """With a network that one pass over the validation lists has taught something."""
    lists = RETRIEVER.candidates(VALIDATION.histories, SERVED)
    seen: list[FusionNetwork] = []
    FusionNetwork.train(
        lists,
        VALIDATION.targets,
        RETRIEVER.fusion,
        sources=list(RETRIEVER.fusion.transforms),
        config=NetworkConfig(epochs=1, reach=SERVED, learning_rate=0.05, batch_size=8),
        seed=0,
        watched=lambda epoch, network: seen.append(network.copy()),
    )
    return replace(RETRIEVER, network=seen[-1])


def test_a_network_is_judged_beside_the_weighted_sum_and_changes_no_other_source(networked, made):
    found = judged(networked)
    assert [one.source for one in found.contributions] == [*(one.source for one in made.contributions), NETWORK]
    for one, other in zip(found.contributions, made.contributions, strict=False):
        assert one.test == other.test
    with_it, without = (one.candidates(ASKED.histories, SERVED).item_rows.tolist() for one in (networked, RETRIEVER))
    assert with_it != without
    test = found.contributions[-1].test
    for ours, lists in ((test.ours, with_it), (test.theirs, without)):
        assert ours == pytest.approx(np.mean([ndcg10(lists[user], target_of(user)) for user in range(len(ASKED))]))
