import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import Histories
from retrieval.trend import EVER, Trend

N, DAY = 6, 86_400
ENTRIES = st.lists(st.tuples(st.integers(0, N - 1), st.integers(-3, 60), st.integers(0, DAY - 1)), max_size=30)
WINDOWS = (2, 30)


def log_of(entries: list[tuple[int, int, int]], *, timeless: int = 0) -> Histories:
    rows = np.array([row for row, _, _ in entries] + [0] * timeless, dtype=np.int64)
    times = [day * DAY + second for _, day, second in entries] + [Histories.NO_TIME] * timeless
    return Histories(rows, np.array([0, len(rows)]), np.array(times, dtype=np.int64))


@given(ENTRIES, st.lists(st.integers(-10, 80), min_size=1, max_size=4), st.integers(0, 2))
@settings(max_examples=60)
def test_counts_are_those_of_the_days_up_to_the_moment_asked(entries, days_asked, timeless):
    found = Trend.fit(log_of(entries, timeless=timeless), N, WINDOWS)
    rows = np.tile(np.arange(N), (len(days_asked), 1))
    asked_at = np.array(days_asked, dtype=np.int64) * DAY + 77
    columns = found.columns(rows, asked_at)
    ever = np.bincount([row for row, _, _ in entries] + [0] * timeless, minlength=N)
    np.testing.assert_allclose(columns[EVER], np.tile(np.log(ever + 0.5), (len(days_asked), 1)), rtol=1e-5)
    np.testing.assert_array_equal(found.untaken(rows), np.tile(ever == 0, (len(days_asked), 1)))
    if not entries:
        assert found.names == (EVER,)
        return
    last = max(day for _, day, _ in entries)
    for name, window in zip(found.names, WINDOWS, strict=False):
        for place, asked in enumerate(days_asked):
            # Beyond the end of the log a window ends with it: what is asked today is not asked of an empty month.
            until = min(asked, last + 1)
            count = [sum(until - window < day <= until for r, day, _ in entries if r == row) for row in range(N)]
            np.testing.assert_allclose(columns[name][place], np.log(np.array(count) + 0.5), rtol=1e-5)


def test_nothing_after_the_day_asked_is_told():
    before = [(1, 3, 0), (2, 9, 5)]
    asked = np.array([10 * DAY])
    rows = np.arange(N)[None, :]
    early = Trend.fit(log_of([*before, (4, 40, 0)]), N, WINDOWS).columns(rows, asked)
    other = Trend.fit(log_of([*before, (5, 44, 0), (5, 47, 0)]), N, WINDOWS).columns(rows, asked)
    for name in Trend.fit(log_of(before), N, WINDOWS).names[:-1]:
        np.testing.assert_array_equal(early[name], other[name])


@pytest.mark.parametrize("asked_at", [None, np.array([Histories.NO_TIME])])
def test_without_a_moment_it_is_the_day_after_the_log_ends(asked_at):
    found = Trend.fit(log_of([(1, 3, 0), (1, 50, 0), (2, 51, 9)]), N, WINDOWS)
    columns = found.columns(np.array([[1, 2, 3]]), asked_at)
    np.testing.assert_allclose(columns["taken in 2 days"], np.log([[0.5, 1.5, 0.5]]), rtol=1e-6)
    np.testing.assert_allclose(columns["taken in 30 days"], np.log([[1.5, 1.5, 0.5]]), rtol=1e-6)
    np.testing.assert_allclose(columns[EVER], np.log([[2.5, 1.5, 0.5]]), rtol=1e-6)


@pytest.mark.parametrize("train", [Histories.of([[1, 2], [2]]), log_of([], timeless=3), Histories.of([])])
def test_a_log_without_times_knows_only_how_often(train):
    found = Trend.fit(train, N, WINDOWS)
    assert found.names == (EVER,)
    counts = np.bincount(train.item_rows, minlength=N)
    columns = found.columns(np.arange(N)[None, :], None)
    np.testing.assert_allclose(columns[EVER][0], np.log(counts + 0.5), rtol=1e-6)


@given(ENTRIES)
@settings(max_examples=20)
def test_what_is_saved_comes_back(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("trend")
    found = Trend.fit(log_of(entries), N, WINDOWS)
    found.save(folder)
    loaded = Trend.load(folder, WINDOWS)
    assert loaded.names == found.names
    rows, asked_at = np.tile(np.arange(N), (2, 1)), np.array([7 * DAY, Histories.NO_TIME])
    for name, column in found.columns(rows, asked_at).items():
        np.testing.assert_array_equal(loaded.columns(rows, asked_at)[name], column)


@given(ENTRIES, st.lists(st.integers(-10, 80), min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=60)
def test_what_is_in_fashion_was_taken_most_by_the_columns_own_count(entries, days_asked, count):
    found = Trend.fit(log_of(entries), N, (2, 5, 30))
    asked_at = np.array(days_asked, dtype=np.int64) * DAY + 77
    rows = found.most_taken(asked_at, len(days_asked), count)
    if not entries:
        assert rows.shape == (len(days_asked), 0)
        return
    columns = found.columns(np.tile(np.arange(N), (len(days_asked), 1)), asked_at)
    for place in range(len(days_asked)):
        expected = set()
        for window in (2, 5):
            taken = np.round(np.exp(columns[f"taken in {window} days"][place]) - 0.5)
            order = sorted(range(N), key=lambda row: (-taken[row], -columns[EVER][place, row], row))
            expected |= {row for row in order[:count] if taken[row] > 0}
        assert sorted(rows[place][rows[place] >= 0].tolist()) == sorted(expected)


def test_who_asks_on_one_day_is_shown_the_same_fashion_without_counting_again():
    found = Trend.fit(log_of([(1, 3, 0), (2, 3, 0), (2, 4, 0), (4, 9, 0)]), N, WINDOWS)
    asked_at = np.array([4 * DAY, 4 * DAY + 500, Histories.NO_TIME])
    rows = found.most_taken(asked_at, 3, 2)
    assert rows[0].tolist() == rows[1].tolist() == [1, 2, -1, -1]
    # 4 in the last two days; 2 twice in thirty, then 1 before 4 as the lower row.
    assert rows[2].tolist() == [1, 2, 4, -1]
    assert len(found._in_fashion) == 2


def test_a_catalog_that_grows_is_not_counted_again():
    train = Histories(np.array([0, 1, 1, 2]), np.array([0, 2, 4]), np.array([0, 5, 8, 9]) * DAY)
    found = Trend.fit(train, 3, (2, 30))
    grown = found.grown(5)
    before, after = (one.columns(np.array([[0, 1, 2]]), None) for one in (found, grown))
    for name in found.names:
        np.testing.assert_array_equal(after[name], before[name])
        np.testing.assert_allclose(grown.columns(np.array([[3, 4]]), None)[name], np.log(0.5))
    assert "_by_day" not in vars(grown)  # the sorting of all interactions
