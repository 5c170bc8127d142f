"""The reranker gets a weight where it helps users it was not weighed on, and none elsewhere."""

import numpy as np
import pytest

from data.schema import NO_ITEM, Candidates, Histories
from fusion.linear import LinearFusion
from rerank.fusion import RERANKER, RETRIEVAL, fit_rerank_fusion, ndcg10

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


def test_weights_survive_saving(tmp_path):
    candidates, targets = lists(knowing)
    fusion, *_ = fit_rerank_fusion(candidates, targets)
    fusion.save(tmp_path / "fusion.json")
    np.testing.assert_array_equal(
        LinearFusion.load(tmp_path / "fusion.json").score(candidates), fusion.score(candidates)
    )
