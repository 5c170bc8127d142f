"""Item-kNN against its formula."""

import numpy as np
import pytest

import baselines.item_knn
from baselines.item_knn import ItemKnn, ItemKnnConfig
from data.schema import Histories

N = 12


@pytest.fixture
def train() -> Histories:
    rng = np.random.default_rng(0)
    return Histories.of([rng.integers(0, N, rng.integers(0, 8)).tolist() for _ in range(40)])


def formula(train: Histories, history: list[int], config: ItemKnnConfig) -> np.ndarray:
    taken = np.zeros((len(train), N))
    for user in range(len(train)):
        taken[user, train[user]] = 1
    norms = np.linalg.norm(taken, axis=0)
    similarity = np.zeros((N, N))
    for a in range(N):
        for b in range(N):
            if a != b and norms[a] * norms[b]:
                similarity[a, b] = taken[:, a] @ taken[:, b] / (norms[a] * norms[b] + config.shrinkage)
    for a in range(N):
        weakest = np.argsort(-similarity[a], kind="stable")[config.neighbours :]
        similarity[a, weakest] = 0
    recent = history[::-1][: config.history_items]
    return sum((config.history_decay**j * similarity[row] for j, row in enumerate(recent)), np.zeros(N))


@pytest.mark.parametrize(
    "config",
    [
        ItemKnnConfig(),
        ItemKnnConfig(shrinkage=3, history_items=2),
        ItemKnnConfig(neighbours=3, history_decay=1),
    ],
)
@pytest.mark.parametrize("block_entries", [2**24, 5 * N])
def test_scores_are_the_formulas(
    train: Histories, config: ItemKnnConfig, block_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.item_knn, "BLOCK_ENTRIES", block_entries)
    source = ItemKnn.fit(train, N, config)
    lists = [[0, 3, 5], [], [7, 7, 1, 2]]
    found = source.candidates(Histories.of(lists), N, exclude_known=False)
    for user, history in enumerate(lists):
        expected = formula(train, history, config)
        np.testing.assert_allclose(found.score[user], expected[found.item_rows[user]], rtol=1e-5, atol=1e-7)
        assert (np.diff(found.score[user]) <= 0).all()


def test_what_no_neighbour_reaches_follows_by_popularity() -> None:
    train = Histories.of([[0, 1], [0, 1], [3], [3], [4], [2, 4], [4]])
    found = ItemKnn.fit(train, 6, ItemKnnConfig()).candidates(Histories.of([[0]]), 5)
    assert found.item_rows.tolist() == [[1, 4, 3, 2, 5]]
    assert found.score[0, 1:].tolist() == [0, 0, 0, 0]
