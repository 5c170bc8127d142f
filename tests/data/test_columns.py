"""What columns mean, guessed by their names."""

import pytest

from data.columns import TableKind, detect_columns, detect_mapping


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
