"""The reranker gets a weight where it helps users it was not weighed on, and none elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.schema import NO_ITEM, Candidates, Histories
from eval.metrics import ndcg10
from fusion.linear import LinearFusion
from rerank.fusion import RERANKER, RETRIEVAL, fit_rerank_fusion, for_another

USERS, DEPTH = 300, 12


def lists(reranker_of, *, users: int = USERS, seed: int = 0) -> tuple[Candidates, Histories]:
    """Candidates in retrieval order, the target at a random place; `reranker_of(relevant, rng)` gives scores."""
    rng = np.random.default_rng(seed)
    rows = np.argsort(rng.random((users, 40)), axis=1)[:, :DEPTH].astype(np.int64)
    # The retriever is right more often than not, but never sure.
    place = np.minimum(rng.geometric(0.3, users) - 1, DEPTH - 1)
    targets = rows[np.arange(users), place]
    retrieval = -np.sort(-rng.normal(size=(users, DEPTH)), axis=1).astype(np.float32)
    relevant = rows == targets[:, None]
    sources = {RETRIEVAL: retrieval, RERANKER: reranker_of(relevant, rng).astype(np.float32)}
    return Candidates(rows, retrieval, sources), Histories.of(targets[:, None].tolist())


def noise(relevant, rng):
    return rng.normal(size=relevant.shape)


def knowing(relevant, rng):
    return 3.0 * relevant + rng.normal(size=relevant.shape)


def test_a_reranker_that_knows_gets_a_weight_and_lifts_what_was_taken():
    candidates, targets = lists(knowing)
    fusion, _, record = fit_rerank_fusion(candidates, targets)
    assert record.used
    assert fusion.weights[RERANKER] > 0
    assert record.users == USERS
    fresh, taken = lists(knowing, seed=1)
    assert ndcg10(fresh.ranked_by(fusion.score(fresh)), taken).mean() > ndcg10(fresh, taken).mean() + 0.1


def test_what_is_recorded_is_the_ndcg_of_both_orders():
    candidates, targets = lists(knowing)
    *_, record = fit_rerank_fusion(candidates, targets)
    places = (candidates.item_rows == targets.item_rows[:, None]).argmax(axis=1)
    by_hand = np.where(places < 10, 1 / np.log2(places + 2), 0).mean()
    assert record.ndcg10_without == pytest.approx(by_hand)
    assert record.ndcg10_with > by_hand
    assert record.as_json()["weights"] == record.weights


def test_a_reranker_that_misleads_gets_no_weight_and_the_order_stays():
    candidates, targets = lists(lambda relevant, rng: -knowing(relevant, rng))
    fusion, _, record = fit_rerank_fusion(candidates, targets)
    assert not record.used
    assert fusion.weights == {RETRIEVAL: 1.0, RERANKER: 0.0}
    np.testing.assert_array_equal(candidates.ranked_by(fusion.score(candidates)).item_rows, candidates.item_rows)


def test_noise_helps_seldom_and_then_hardly():
    # The weight is chosen on other users than it is judged on, so noise passes about as often as a coin falls,
    # and never with a gain that means anything.
    gains = []
    for seed in range(20):
        *_, record = fit_rerank_fusion(*lists(noise, seed=seed))
        gains.append(record.ndcg10_with - record.ndcg10_without if record.used else 0.0)
    assert np.mean(np.array(gains) > 0) < 0.7
    assert max(gains) < 0.02


def test_a_constant_reranker_changes_nothing():
    candidates, targets = lists(lambda relevant, rng: np.full(relevant.shape, 5.0))
    fusion, _, record = fit_rerank_fusion(candidates, targets)
    assert fusion.weights[RERANKER] == 0
    assert not record.used


def test_without_users_there_is_no_weight():
    candidates, targets = lists(knowing, users=2)
    nobody = np.zeros(0, dtype=np.int64)
    fusion, _, record = fit_rerank_fusion(candidates.take(nobody), targets.take(nobody))
    assert fusion.weights == {RETRIEVAL: 1.0, RERANKER: 0.0}
    assert (record.users, record.used, record.ndcg10_with) == (0, False, 0.0)


@pytest.mark.parametrize("users", [1, 2, 3])
def test_so_few_users_that_folds_are_empty(users):
    fusion, _, record = fit_rerank_fusion(*lists(knowing, users=users))
    assert record.users == users
    assert np.isfinite(list(fusion.weights.values())).all()


def test_missed_targets_count_as_misses_on_both_sides():
    candidates, targets = lists(knowing)
    missed = Histories.of([[99]] * USERS)
    *_, record = fit_rerank_fusion(candidates, missed)
    assert (record.ndcg10_without, record.ndcg10_with, record.used) == (0.0, 0.0, False)
    both = Histories.joined([targets, missed])
    twice = Candidates(
        np.concatenate([candidates.item_rows] * 2),
        np.concatenate([candidates.score] * 2),
        {name: np.concatenate([scores] * 2) for name, scores in candidates.sources.items()},
    )
    *_, record = fit_rerank_fusion(twice, both)
    assert record.ndcg10_without == pytest.approx(ndcg10(candidates, targets).mean() / 2)


def test_lists_that_end_early():
    candidates, targets = lists(knowing)
    rows, score = candidates.item_rows.copy(), candidates.score.copy()
    rows[::3, 7:], score[::3, 7:] = NO_ITEM, -np.inf
    sources = {name: np.where(rows == NO_ITEM, 0, scores) for name, scores in candidates.sources.items()}
    short = Candidates(rows, score, sources)
    fusion, _, record = fit_rerank_fusion(short, targets)
    assert record.used
    fused = short.ranked_by(fusion.score(short))
    assert (fused.item_rows[::3, 7:] == NO_ITEM).all()


def test_a_score_beyond_all_that_were_seen_lifts_no_further_than_the_highest_of_them():
    candidates, targets = lists(knowing)
    fusion, *_ = fit_rerank_fusion(candidates, targets)
    seen = candidates.sources[RERANKER]
    hostile = seen.copy()
    hostile[:, -1], hostile[:, 0] = 1e6, -1e6
    fused = fusion.score(candidates.with_source(RERANKER, hostile))
    most, least = seen.copy(), candidates.sources[RETRIEVAL]
    most[:, -1], most[:, 0] = seen.max(), seen.min()
    expected = fusion.weights[RETRIEVAL] * least + fusion.weights[RERANKER] * most
    np.testing.assert_allclose(fused, expected, rtol=1e-5)
    np.testing.assert_allclose(
        fusion.parts(candidates.with_source(RERANKER, hostile))[RERANKER], fusion.weights[RERANKER] * most, rtol=1e-5
    )
    # What the weights were fitted on is scored as it was.
    plain = replace(fusion, ranges={})
    np.testing.assert_array_equal(fusion.score(candidates), plain.score(candidates))


def test_a_fusion_saved_before_there_were_ranges_clips_nothing(tmp_path):
    fusion, *_ = fit_rerank_fusion(*lists(knowing))
    fusion.save(tmp_path / "fusion.json")
    saved = json.loads((tmp_path / "fusion.json").read_text())
    assert set(saved.pop("ranges")) == {RERANKER}
    (tmp_path / "fusion.json").write_text(json.dumps(saved))
    assert LinearFusion.load(tmp_path / "fusion.json") == replace(fusion, ranges={})


def test_weights_survive_saving(tmp_path):
    candidates, targets = lists(knowing)
    fusion, *_ = fit_rerank_fusion(candidates, targets)
    fusion.save(tmp_path / "fusion.json")
    loaded = LinearFusion.load(tmp_path / "fusion.json")
    assert loaded == fusion
    far = candidates.with_source(RERANKER, 10 * candidates.sources[RERANKER])
    np.testing.assert_array_equal(loaded.score(far), fusion.score(far))


def test_a_reranker_of_another_scale_ranks_as_the_one_that_was_weighed():
    candidates, targets = lists(knowing)
    fusion, _, record = fit_rerank_fusion(candidates, targets)
    assert record.used
    again = candidates.with_source(RERANKER, 7 + candidates.sources[RERANKER] / 5)
    fitting = for_another(fusion, candidates, again)
    expected, found = (
        ordered.item_rows
        for ordered in (candidates.ranked_by(fusion.score(candidates)), again.ranked_by(fitting.score(again)))
    )
    assert np.array_equal(found, expected)
    assert fitting.ranges[RERANKER] == pytest.approx([7 + bound / 5 for bound in fusion.ranges[RERANKER]], abs=1e-4)
    # Clipped to the range of the other scale nothing of the order would be left.
    stuck = again.ranked_by(fusion.score(again))
    assert np.array_equal(stuck.item_rows, again.item_rows)


def test_scores_that_tell_nothing_apart_leave_the_weights():
    candidates, targets = lists(knowing)
    fusion = fit_rerank_fusion(candidates, targets)[0]
    constant = candidates.with_source(RERANKER, np.ones_like(candidates.score))
    assert for_another(fusion, candidates, constant) == fusion
    nobody = candidates.take(np.zeros(0, dtype=np.int64))
    assert for_another(fusion, nobody, nobody) == fusion
