"""What columns mean, guessed by their names."""

import pytest

from data.columns import TableKind, detect_columns, detect_mapping, time_columns
from data.table import read_table
from tests.data.files import DAY, NOON, write


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        (
            ["userId", "movieId", "rating", "timestamp"],
            TableKind.LOG,
            {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "rating": "rating"},
        ),
        (
            ["reviewerID", "asin", "overall", "unixReviewTime", "reviewTime"],
            TableKind.LOG,
            {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime", "rating": "overall"},
        ),
        (
            ["user_id:token", "item_id:token", "timestamp:float"],
            TableKind.LOG,
            {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"},
        ),
        (["id", "Name"], TableKind.CATALOG, {"item_id": "id", "title": "Name"}),
        (["id", "age"], TableKind.USERS, {"user_id": "id"}),
        (["colour"], TableKind.LOG, {}),
    ],
)
def test_columns_are_guessed_by_their_names(columns, kind, expected):
    assert detect_columns(columns, kind) == expected


def test_the_item_id_that_both_files_have_is_preferred():
    mapping = detect_mapping(["user_id", "asin", "parent_asin", "timestamp"], ["parent_asin", "id", "title"])
    assert (mapping["log.item_id"], mapping["catalog.item_id"]) == ("parent_asin", "parent_asin")
    mapping = detect_mapping(["visitor", "movie"], ["id", "name"])
    assert mapping == {
        "log.user_id": "visitor",
        "log.item_id": "movie",
        "catalog.item_id": "id",
        "catalog.title": "name",
    }


def times_of(folder, **columns):
    """The columns of a log of three users and three items that seem to hold times."""
    named = {"user": list("aabbcc"), "item": list("xyxyxz"), **columns}
    rows = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
    return time_columns(read_table(write(folder / "log.csv", rows)), ["user", "item"])


MOMENTS = [NOON + place * DAY for place in (3, 1, 4, 0, 5, 9)]


@pytest.mark.parametrize(
    "name",
    [
        *("event_ts", "event_timestamp", "timestamp_ms", "order_date", "purchase_date", "click_time", "eventTime"),
        *("CLICK_TS:float", "purchasedate", "clicked_at", "created", "day", "unixReviewTime"),
    ],
)
def test_times_are_known_by_a_part_of_a_name_and_by_their_values(tmp_path, name):
    days = [f"2014-05-{13 + place}" for place in range(6)]
    for moments in (MOMENTS, [1000 * moment for moment in MOMENTS], days):
        assert times_of(tmp_path, **{name: moments}) == [name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("watch_time", [31, 2, 90, 14, 7, 3]),
        ("update", ["yes", "no", "no", "no", "yes", "no"]),
        ("rating", MOMENTS),
        ("birth_date", ["1991-02-03"] * 2 + ["1992-02-03"] * 2 + ["1993-02-03"] * 2),
        ("release_date", ["2001-01-01", "2002-01-01"] * 2 + ["2001-01-01", "2003-01-01"]),
    ],
)
def test_what_is_no_time_or_tells_of_a_user_or_an_item_is_not_taken_for_one(tmp_path, name, values):
    assert times_of(tmp_path, **{name: values}) == []


def test_of_several_times_the_usual_name_goes_first_unless_its_values_are_none(tmp_path):
    assert times_of(tmp_path, order_date=MOMENTS, ts=MOMENTS[::-1]) == ["ts", "order_date"]
    told = ["05 3, 2014"] * 6
    assert times_of(tmp_path, review_time=told, order_date=MOMENTS) == ["order_date"]
    assert times_of(tmp_path, review_time=told) == ["review_time"]
