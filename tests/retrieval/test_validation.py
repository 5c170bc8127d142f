from dataclasses import replace
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import Histories, Holdout
from eval.protocol import CatalogStats, evaluate
from retrieval import validation
from retrieval.retriever import best_of_dense
from retrieval.validation import catalog_ndcg10


def asked(histories, targets) -> Holdout:
    return Holdout("validation", np.arange(len(histories)), Histories.of(histories), Histories.of(targets))


@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_the_protocol(seed, n_items, repeats, several):
    rng = np.random.default_rng(seed)
    users = 12
    histories = [rng.integers(0, n_items, rng.integers(0, 6)).tolist() for _ in range(users)]
    targets = [[int(rng.integers(0, n_items))] for _ in range(users)]
    if not repeats:  # a target that the history lacks, where there is one
        fresh = [sorted(set(range(n_items)) - set(items)) or [0] for items in histories]
        targets = [[int(rng.choice(rows))] for rows in fresh]
    if several:  # everything after a moment
        targets = [rng.permutation(n_items)[: rng.integers(1, 16)].tolist() for _ in range(users)]
    scores = rng.permuted(np.tile(np.arange(n_items, dtype=np.float32), (users, 1)), axis=1)
    question = asked(histories, targets)
    masked = scores.copy()
    masked[question.histories.list_of_row, question.histories.item_rows] = -np.inf
    expected = evaluate(
        best_of_dense(masked, n_items, name="random"), question, CatalogStats.of(question.histories, n_items)
    )
    found = catalog_ndcg10(lambda _: scores, question, n_items=n_items)
    assert found == pytest.approx(expected.metrics["ndcg@10"])


def test_by_hand_over_several_batches(monkeypatch):
    monkeypatch.setattr(validation, "SCORES_AT_ONCE", 40)  # two users of 20 items at a time
    line = np.arange(20, 0, -1, dtype=np.float32)  # item 0 is best
    question = asked([[], [0, 1], [0], [19], [5]], [[0], [4], [1], [9], [10]])
    found = catalog_ndcg10(lambda part: np.tile(line, (len(part), 1)), question, n_items=20)
    # places 1, 3 (0 and 1 are known), 1 (0 is known), 10 (19 is known but behind), 10 (5 is known)
    assert found == pytest.approx((1 + 1 / log2(4) + 1 + 1 / log2(11) + 1 / log2(11)) / 5)


def test_an_item_that_may_be_taken_again_earns_its_place_and_takes_that_of_others():
    line = np.arange(20, 0, -1, dtype=np.float32)  # item 0 is best
    question = replace(asked([[0, 1], [0]], [[1], [4]]), exclude_known=False)
    found = catalog_ndcg10(lambda part: np.tile(line, (len(part), 1)), question, n_items=20)
    assert found == pytest.approx((1 / log2(3) + 1 / log2(6)) / 2)


def test_constant_scores_earn_nothing():
    question = asked([[], [1], [2, 3]], [[0], [2], [5]])
    assert catalog_ndcg10(lambda part: np.zeros((len(part), 30)), question, n_items=30) == 0


def test_scores_are_not_written_into():
    scores = np.ones((1, 12), dtype=np.float32)
    catalog_ndcg10(lambda _: scores, asked([[1, 2]], [[3]]), n_items=12)
    assert (scores == 1).all()


def test_a_nan_is_refused_and_nobody_earns_nothing():
    with pytest.raises(FloatingPointError, match="NaN"):
        catalog_ndcg10(lambda _: np.full((1, 3), np.nan), asked([[0]], [[1]]), n_items=3)
    assert catalog_ndcg10(lambda _: np.zeros((0, 3)), asked([], []), n_items=3) == 0
