"""Implicit ALS: histories are folded in exactly, and a planted pattern is found."""

import numpy as np

from baselines.ials import IalsConfig, ImplicitAls
from data.schema import Histories

CONFIG = IalsConfig(factors=2, alpha=20, l2=0.5, iterations=10)


def checkerboard(users: int = 40, items: int = 30) -> Histories:
    """Even users take even items, odd ones odd items, each leaving out a few."""
    rng = np.random.default_rng(0)
    return Histories.of([[row for row in range(user % 2, items, 2) if rng.random() < 0.7] for user in range(users)])


def test_a_history_is_folded_in_by_the_normal_equations() -> None:
    source = ImplicitAls.fit(checkerboard(), 30, CONFIG)
    lists = [[0, 4, 8], [29], []]
    found = source.user_factors(Histories.of(lists))
    y = source.item_factors.astype(np.float64)
    for user, history in enumerate(lists):
        weights, taken = np.ones(30), np.zeros(30)
        weights[history], taken[history] = CONFIG.alpha, 1
        # Hu et al. 2008, eq. 4: x = (Yᵀ C Y + λ I)⁻¹ Yᵀ C p
        left = y.T @ (weights[:, None] * y) + CONFIG.l2 * np.eye(CONFIG.factors)
        np.testing.assert_allclose(found[user], np.linalg.solve(left, y.T @ (weights * taken)), atol=1e-4)


def test_users_get_items_of_their_own_colour() -> None:
    source = ImplicitAls.fit(checkerboard(), 30, CONFIG)
    found = source.candidates(Histories.of([[0, 2, 4], [1, 3, 5]]), 12)
    assert set(found.item_rows[0]) == set(range(6, 30, 2))
    assert set(found.item_rows[1]) == set(range(7, 30, 2))


def test_one_seed_gives_one_result() -> None:
    asked = Histories.of([[0, 2], [5]])
    first, again, other = (
        ImplicitAls.fit(checkerboard(), 30, CONFIG, seed=seed).candidates(asked, 9) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.score, again.score)
    assert (first.score != other.score).any()
