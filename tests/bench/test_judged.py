"""Files of lists, tested by what our reports use, and what a judge's interval says."""

from math import log2
from pathlib import Path

import polars as pl
import pytest

from bench.judged import compared_by_report, verdict_of
from data.load import LoadConfig
from data.schema import ITEM_ID, POSITION, RANK, TITLE, USER_ID
from eval.significance import Verdict

USERS, ITEMS = 8, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every user has taken i0, and i1 in the end; the last one has i1 alone, and nobody can be asked about her."""
    log = [(f"u{user}", f"i{place}", place) for user in range(USERS) for place in (0, 1)]
    pl.DataFrame([*log, ("lonely", "i1", 0)], schema=[USER_ID, ITEM_ID, POSITION], orient="row").write_parquet(
        tmp_path / "interactions.parquet"
    )
    ids = [f"i{place}" for place in range(ITEMS)]
    pl.DataFrame({ITEM_ID: ids, TITLE: ids}).write_parquet(tmp_path / "items.parquet")
    return tmp_path


def lists(file: Path, places: dict[str, int]) -> Path:
    """A list of three for each user, with i1 at this place from 1, in rows of no order."""
    rows = []
    for user, place in places.items():
        items = ["i2", "i3", "i4"]
        items[place - 1] = "i1"
        rows += [(user, item, rank) for rank, item in enumerate(items, start=1)][::-1]
    pl.DataFrame(rows, schema=[USER_ID, ITEM_ID, RANK], orient="row").write_parquet(file)
    return file


def test_two_files_are_compared_user_by_user(folder: Path) -> None:
    ours = lists(folder / "ours.parquet", {f"u{user}": 1 for user in range(USERS)} | {"lonely": 1})
    theirs = lists(folder / "theirs.parquet", {f"u{user}": 3 - user % 2 for user in reversed(range(USERS - 1))})
    test = compared_by_report(ours, theirs, data=folder, config=LoadConfig())
    # Four at the third place, three at the second, and one who has no list there.
    expected = (4 / log2(4) + 3 / log2(3)) / USERS
    assert (test.users, test.ours) == (USERS, 1.0)
    assert test.theirs == pytest.approx(expected)
    assert test.difference == pytest.approx(1 - expected)
    assert test.verdict is Verdict.HELPS


def test_equal_files_are_no_evidence(folder: Path) -> None:
    file = lists(folder / "ours.parquet", {f"u{user}": 1 + user % 3 for user in range(USERS)})
    test = compared_by_report(file, file, data=folder, config=LoadConfig())
    assert (test.difference, test.relative, test.p_value) == (0, 0, 1)
    assert test.verdict is Verdict.NO_EVIDENCE is verdict_of(test.low, test.high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.001, 0.1, Verdict.HELPS), (-0.1, -0.001, Verdict.HARMS), (-0.1, 0.1, Verdict.NO_EVIDENCE)],
)
def test_an_interval_says_something_where_it_leaves_out_zero(low: float, high: float, verdict: Verdict) -> None:
    assert verdict_of(low, high) is verdict
