"""The ranking that all baselines share, against a plain sort."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines.base
from baselines.base import batched_candidates, decayed_matrix, top_candidates, user_item_matrix
from data.schema import NO_ITEM, Histories

AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-40, -1e-40, 3e38, -3e38, -np.inf]


def sorted_plainly(scores: np.ndarray, known: Sequence[int], depth: int, tie_order: np.ndarray) -> list[int]:
    """By falling score, then by place in the tie order; without known items and those at -inf."""
    place = {int(row): n for n, row in enumerate(tie_order)}
    allowed = [row for row in range(len(scores)) if row not in known and scores[row] != -np.inf]
    ranked = sorted(allowed, key=lambda row: (-float(scores[row]), place[row]))[:depth]
    return ranked + [NO_ITEM] * (depth - len(ranked))


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_agrees_with_a_plain_sort(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    users, items, depth = (data.draw(st.integers(1, high)) for high in (5, 30, 40))
    scores = rng.choice(AWKWARD, (users, items)).astype(np.float32)
    tie_order = rng.permutation(items) if data.draw(st.booleans()) else None
    lists = [rng.integers(0, items, rng.integers(0, items + 1)).tolist() for _ in range(users)]
    exclude = data.draw(st.booleans())
    found = top_candidates(
        scores.copy(), Histories.of(lists), depth, name="x", exclude_known=exclude, tie_order=tie_order
    )
    order = np.arange(items) if tie_order is None else tie_order
    for user in range(users):
        expected = sorted_plainly(scores[user], lists[user] if exclude else [], depth, order)
        assert found.item_rows[user].tolist() == expected
        present = [row for row in expected if row != NO_ITEM]
        np.testing.assert_array_equal(found.score[user, : len(present)], scores[user, present])
        assert (found.score[user, len(present) :] == -np.inf).all()
    np.testing.assert_array_equal(found.sources["x"], found.score)


def test_a_score_that_is_nan_is_refused() -> None:
    scores = np.array([[1, np.nan]], dtype=np.float32)
    with pytest.raises(ValueError, match="x gives a score that is NaN"):
        top_candidates(scores, Histories.of([[]]), 1, name="x")


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((20, 20)).astype(np.float32)
    histories = Histories.of([rng.integers(0, 20, n).tolist() for n in range(11)])
    sizes: list[int] = []

    def score(batch: Histories) -> np.ndarray:
        sizes.append(len(batch))
        return user_item_matrix(batch, 20) @ table

    whole = batched_candidates(score, histories, 5, n_items=20, name="x")
    monkeypatch.setattr(baselines.base, "BATCH_BYTES", 4 * 20 * baselines.base.BYTES_PER_SCORE)
    parts = batched_candidates(score, histories, 5, n_items=20, name="x")
    assert sizes == [11, 4, 4, 3]
    np.testing.assert_array_equal(parts.item_rows, whole.item_rows)
    np.testing.assert_array_equal(parts.score, whole.score)


def test_a_repeated_item_counts_once_in_the_binary_matrix() -> None:
    matrix = user_item_matrix(Histories.of([[2, 0, 2], []]), 3)
    assert matrix.toarray().tolist() == [[1, 0, 1], [0, 0, 0]]


def test_the_decayed_matrix_weighs_by_steps_back() -> None:
    matrix = decayed_matrix(Histories.of([[0, 1, 2, 1], []]), 3, window=3, decay=0.5)
    assert matrix.toarray().tolist() == [[0, 1 + 0.25, 0.5], [0, 0, 0]]
