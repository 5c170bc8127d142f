"""What was taken most, ever or lately."""

import numpy as np
import pytest

from baselines.popularity import SECONDS_PER_DAY, Popularity, RecentPopularity
from data.schema import Histories

NEWCOMER = Histories.of([[]])


def timed(lists: list[list[tuple[int, float]]]) -> Histories:
    """Histories from (item row, day) pairs; a day of NaN is unknown."""
    plain = Histories.of([[row for row, _ in pairs] for pairs in lists])
    days = [day for pairs in lists for _, day in pairs]
    times = [Histories.NO_TIME if np.isnan(day) else int(day * SECONDS_PER_DAY) for day in days]
    return Histories(plain.item_rows, plain.offsets, np.array(times, dtype=np.int64))


def test_most_taken_first_then_lower_row() -> None:
    source = Popularity.fit(Histories.of([[2, 1], [2, 1], [2, 3]]), 5)
    found = source.candidates(NEWCOMER, 5)
    assert found.item_rows.tolist() == [[2, 1, 3, 0, 4]]
    assert found.score.tolist() == [[3, 2, 1, 0, 0]]


def test_known_items_make_room_for_the_next() -> None:
    source = Popularity.fit(Histories.of([[2, 1], [2, 1], [2, 3]]), 5)
    assert source.candidates(Histories.of([[2, 3]]), 2).item_rows.tolist() == [[1, 0]]


def test_only_the_last_days_count_and_all_time_breaks_ties() -> None:
    # Item 0 was the rage long ago; in the last 30 days item 1 was taken twice, items 2 and 3 once.
    train = timed([[(0, 0), (3, 0), (1, 95)], [(0, 1), (3, 2), (1, 100)], [(0, 1), (2, 99), (3, 75)]])
    source = RecentPopularity.fit(train, 5, days=30)
    found = source.candidates(NEWCOMER, 5)
    assert found.item_rows.tolist() == [[1, 3, 2, 0, 4]]
    assert found.score.tolist() == [[2, 1, 1, 0, 0]]
    assert source.window == "last 30 days"


def test_the_window_excludes_its_far_end() -> None:
    source = RecentPopularity.fit(timed([[(0, 70), (1, 71), (2, 100)]]), 3, days=30)
    assert source.counts.tolist() == [0, 1, 1]


def test_interactions_without_time_are_not_recent() -> None:
    source = RecentPopularity.fit(timed([[(0, np.nan), (0, np.nan), (1, 100)]]), 2)
    assert source.counts.tolist() == [0, 1]


@pytest.mark.parametrize("unknown", [False, True])
def test_a_log_without_times_counts_the_end_of_each_history(unknown: bool) -> None:
    plain = Histories.of([[0] * 18 + [1, 2], [0, 3], []])
    times = np.full(len(plain.item_rows), Histories.NO_TIME)
    train = Histories(plain.item_rows, plain.offsets, times if unknown else None)
    source = RecentPopularity.fit(train, 4, share_without_time=0.1)
    assert source.counts.tolist() == [0, 1, 1, 1]  # 10 % of 20 is two; of 2 it is at least one
    assert "no times" in source.window
