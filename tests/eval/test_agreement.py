import numpy as np
import pytest
from scipy.stats import kendalltau

from eval.agreement import Agreement


def test_tau_and_the_largest_difference_are_those_of_loops():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((30, 12)).astype(np.float32)
    ours = np.round(exact + 0.3 * rng.standard_normal((30, 12)), 1).astype(np.float32)  # rounded, so that some tie
    present = rng.random((30, 12)) < 0.8
    found = Agreement.of(ours, exact, present)
    taus = [kendalltau(ours[row][present[row]], exact[row][present[row]]).statistic for row in range(30)]
    assert found.kendall_tau == pytest.approx(np.mean(taus))
    assert found.largest_difference == max(
        abs(float(ours[row, place]) - float(exact[row, place])) for row, place in zip(*np.nonzero(present), strict=True)
    )
    assert 0.3 < found.kendall_tau < 0.95


def test_equal_scores_agree_and_the_opposite_order_does_not():
    scores, everywhere = np.arange(8, dtype=np.float32)[None], np.ones((1, 8), dtype=np.bool_)
    assert Agreement.of(scores, scores, everywhere) == Agreement(0.0, 1.0)
    assert Agreement.of(-scores, scores, everywhere).kendall_tau == -1


def test_users_without_an_order_say_nothing():
    scores = np.array([[1, 2, 3], [1, 1, 1]], dtype=np.float32)
    swapped = np.array([[1, 3, 2], [0, 1, 2]], dtype=np.float32)
    everywhere = np.ones((2, 3), dtype=np.bool_)
    assert Agreement.of(scores, swapped, everywhere).kendall_tau == pytest.approx((2 - 1) / 3)
    assert Agreement.of(scores[1:], swapped[1:], everywhere[1:]).kendall_tau == 1
    assert Agreement.of(scores[:0], swapped[:0], everywhere[:0]) == Agreement(0.0, 1.0)
