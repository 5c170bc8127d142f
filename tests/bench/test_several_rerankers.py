"""Of several rerankers those get a weight that add something to the others, and no others."""

import numpy as np
import pytest

from bench.several_rerankers import fit_several
from data.schema import Candidates, Histories
from fusion.linear import LinearFusion, Transform
from rerank.fusion import RERANKER, RETRIEVAL, fit_rerank_fusion, ndcg10

USERS, DEPTH = 400, 12
ONE, OTHER = "one", "other"


def lists(seed: int = 0) -> tuple[Candidates, Histories, np.random.Generator]:
    """Candidates in retrieval order, the target at any of twelve places."""
    rng = np.random.default_rng(seed)
    rows = np.argsort(rng.random((USERS, 40)), axis=1)[:, :DEPTH].astype(np.int64)
    targets = rows[np.arange(USERS), rng.integers(0, DEPTH, USERS)]
    retrieval = -np.sort(-rng.normal(size=(USERS, DEPTH)), axis=1).astype(np.float32)
    return Candidates(rows, retrieval, {RETRIEVAL: retrieval}), Histories.of(targets[:, None].tolist()), rng


def knowing(candidates: Candidates, targets: Histories, rng: np.random.Generator) -> np.ndarray:
    """Scores that tell the target from others, with noise of their own."""
    relevant = candidates.item_rows == targets.item_rows[:, None]
    return (1.5 * relevant + rng.normal(size=relevant.shape)).astype(np.float32)


def both_knowing(seed: int = 0) -> tuple[Candidates, Histories]:
    candidates, targets, rng = lists(seed)
    for name in (ONE, OTHER):
        candidates = candidates.with_source(name, knowing(candidates, targets, rng))
    return candidates, targets


def test_two_that_know_different_things_are_both_kept_and_better_than_either():
    found = fit_several(*both_knowing(), [ONE, OTHER])
    assert found.kept == (ONE, OTHER)
    assert min(found.weights.values()) >= 0 < min(found.weights[ONE], found.weights[OTHER])
    # On users that nothing was fitted on, too.
    fresh, taken = both_knowing(seed=1)

    def reached(*names: str) -> float:
        fusion = LinearFusion.fit(*both_knowing(), dict.fromkeys((RETRIEVAL, *names), Transform.RAW))
        return float(ndcg10(fresh.ranked_by(fusion.score(fresh)), taken).mean())

    assert reached(ONE, OTHER) > max(reached(ONE), reached(OTHER)) + 0.02


def test_every_set_is_told_by_cross_validation():
    candidates, targets = both_knowing()
    found = fit_several(candidates, targets, [ONE, OTHER])
    assert list(found.gains) == [(ONE,), (OTHER,), (ONE, OTHER)]
    np.testing.assert_array_equal(found.without, ndcg10(candidates, targets))
    for name in (ONE, OTHER):
        alone = candidates.with_source(RERANKER, candidates.sources[name])
        np.testing.assert_array_equal(found.gains[name,], fit_rerank_fusion(alone, targets)[1])


@pytest.mark.parametrize("echo", ["a copy", "noise", "the contrary"])
def test_one_that_adds_nothing_gets_no_weight_beside_one_that_knows(echo):
    candidates, targets, rng = lists()
    scores = knowing(candidates, targets, rng)
    noise = rng.normal(size=scores.shape).astype(np.float32)
    other = {"a copy": scores, "noise": noise, "the contrary": -scores}[echo]
    found = fit_several(candidates.with_source(ONE, scores).with_source(OTHER, other), targets, [ONE, OTHER])
    assert found.kept == (ONE,)
    assert found.weights[OTHER] == 0 < found.weights[ONE]


def test_where_none_helps_retrieval_stays():
    candidates, targets, rng = lists()
    for name in (ONE, OTHER):
        candidates = candidates.with_source(name, -knowing(candidates, targets, rng))
    found = fit_several(candidates, targets, [ONE, OTHER])
    assert found.kept == ()
    assert found.weights == {RETRIEVAL: 1.0, ONE: 0.0, OTHER: 0.0}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_one_is_kept_by_the_rule_of_what_is_served(sign):
    candidates, targets, rng = lists()
    candidates = candidates.with_source(RERANKER, sign * knowing(candidates, targets, rng))
    fusion, _, record = fit_rerank_fusion(candidates, targets)
    found = fit_several(candidates, targets, [RERANKER])
    assert bool(found.kept) == record.used == (sign > 0)
    assert found.weights == fusion.weights
