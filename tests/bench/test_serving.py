"""How the highest rate that a server bears is looked for."""

import pytest

from bench.serving import highest


def test_the_rate_is_found_to_a_hundredth_of_the_span() -> None:
    assert highest(lambda rate: rate <= 81.3, below=300, halvings=9) == pytest.approx(81.3, abs=0.6)


def test_one_trial_that_fails_for_another_reason_costs_nothing() -> None:
    asked: list[float] = []

    def bears(rate: float) -> bool:
        asked.append(rate)
        disturbed = asked.count(rate) == 1 and len(asked) in (1, 4)
        return rate <= 200 and not disturbed

    assert highest(bears, below=256, halvings=8) == 200


def test_a_rate_that_is_borne_once_in_three_trials_is_too_high() -> None:
    asked: list[float] = []

    def bears(rate: float) -> bool:
        asked.append(rate)
        return rate <= 64 or asked.count(rate) == 1

    assert highest(bears, below=256, halvings=6) == 64


def test_nothing_is_found_where_nothing_is_borne() -> None:
    assert highest(lambda _: False, below=100, halvings=5) == 0
