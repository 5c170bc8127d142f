"""Cross-validation over users."""

from collections.abc import Callable

import numpy as np
import pytest

from data.schema import Candidates, Histories, Scores
from eval.folds import FOLDS, crossed_ndcg10, folds


@pytest.mark.parametrize("users", [0, 1, 2, FOLDS, 23])
def test_everybody_is_scored_once_and_by_others(users: int) -> None:
    scored = []
    for inside, outside in folds(users):
        assert len(outside)
        assert not set(inside) & set(outside)
        assert len(inside) + len(outside) == users
        scored += outside.tolist()
    assert sorted(scored) == list(range(users))


def test_nobody_is_scored_by_their_own_targets() -> None:
    users, items = 40, 12
    rows = np.tile(np.arange(items), (users, 1))
    candidates = Candidates(rows, np.zeros(rows.shape, dtype=np.float32))
    targets = Histories.of([[user % items] for user in range(users)])

    def fit(some: Candidates, taken: Histories) -> Callable[[Candidates], Scores]:
        # What the users learnt from took comes first: of others' targets it says something, of one's own too much.
        count = np.bincount(taken.item_rows, minlength=items).astype(np.float32)
        return lambda asked: count[asked.item_rows]

    crossed = crossed_ndcg10(candidates, targets, fit)
    expected = np.zeros(users)
    for user in range(users):
        others = [other % items for other in range(users) if other % FOLDS != user % FOLDS]
        count = np.bincount(others, minlength=items)
        place = int((count > count[user % items]).sum() + (count[: user % items] == count[user % items]).sum())
        expected[user] = 1 / np.log2(place + 2) if place < 10 else 0
    assert crossed == pytest.approx(expected)
