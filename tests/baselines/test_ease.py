"""EASE against the closed form in float64."""

import numpy as np
import pytest

from baselines.ease import Ease, EaseConfig, _mirror_upper
from data.schema import Histories

N = 15


def taken_by(histories: Histories) -> np.ndarray:
    taken = np.zeros((len(histories), N))
    for user in range(len(histories)):
        taken[user, histories[user]] = 1
    return taken


def test_weights_and_scores_are_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    train = Histories.of([rng.integers(0, N, rng.integers(0, 8)).tolist() for _ in range(60)])
    source = Ease.fit(train, N, EaseConfig(l2=5))
    x = taken_by(train)
    inverse = np.linalg.inv(x.T @ x + 5 * np.eye(N))
    weights = -inverse / np.diag(inverse)  # Steck 2019, eq. 8: B_ij = -P_ij / P_jj
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(source.weights, weights, atol=1e-5)
    asked = Histories.of([[1, 2, 2], [], [9]])
    found = source.candidates(asked, 4, exclude_known=False)
    scores = taken_by(asked) @ weights
    for user in (0, 2):
        np.testing.assert_array_equal(found.item_rows[user], np.argsort(-scores[user])[:4])
        np.testing.assert_allclose(found.score[user], np.sort(scores[user])[::-1][:4], atol=1e-5)


def test_weights_minimise_the_ridge_loss_under_a_zero_diagonal() -> None:
    rng = np.random.default_rng(1)
    train = Histories.of([rng.integers(0, N, 5).tolist() for _ in range(30)])
    x, weights = taken_by(train), Ease.fit(train, N, EaseConfig(l2=2)).weights.astype(np.float64)
    gradient = x.T @ (x @ weights - x) + 2 * weights
    np.fill_diagonal(gradient, 0)  # the constrained entries
    assert np.abs(gradient).max() < 1e-4


def test_a_large_catalog_is_refused_with_its_size() -> None:
    config = EaseConfig(max_items=20_000)
    assert Ease.refuses(20_000, config) is None
    refused = Ease.refuses(100_000, config)
    assert refused is not None
    assert "100,000 items" in refused.reason
    assert "80 GB" in refused.reason
    with pytest.raises(ValueError, match="20,001 items"):
        Ease.fit(Histories.of([[0]]), 20_001, config)


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_mirroring_in_blocks_makes_the_matrix_symmetric(step: int) -> None:
    symmetric = np.random.default_rng(0).standard_normal((7, 7)).astype(np.float32)
    symmetric += symmetric.T
    upper = np.asfortranarray(np.triu(symmetric) + np.tril(np.full((7, 7), 99, dtype=np.float32), -1))
    _mirror_upper(upper, step)
    np.testing.assert_array_equal(upper, symmetric)
