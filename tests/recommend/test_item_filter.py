"""What a user asks of the items that are shown, as a mask."""

import numpy as np
import polars as pl
import pytest

from data.columns import TableKind, renamed_columns
from data.schema import Catalog
from data.vocabulary import Vocabulary
from recommend.item_filter import ItemFilter, listed_ids
from store.errors import BadInput, UnknownId

ITEMS = pl.DataFrame(
    {"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "text": ["A", "B", "C"], "price": [1, 5, 9]}
)
CATALOG = Catalog(ITEMS, Vocabulary(["a", "b", "c"]))
REMOVED_C = np.array([True, True, False])


def test_nothing_asked_is_no_mask():
    assert ItemFilter().mask(CATALOG, REMOVED_C) is None  # sources know by themselves what was removed


def test_condition_allowed_and_denied_meet():
    asked = ItemFilter(where="price > 1", only="a,b,c", exclude="b")
    assert asked.mask(CATALOG).tolist() == [False, False, True]


def test_what_was_removed_is_not_left():
    assert ItemFilter(where="price > 1").mask(CATALOG, REMOVED_C).tolist() == [False, True, False]
    with pytest.raises(BadInput, match=r"none of the 2 items passes the filter \(--where 'price > 5'\)"):
        ItemFilter(where="price > 5").mask(CATALOG, REMOVED_C)


def test_unknown_ids_are_named():
    with pytest.raises(UnknownId, match="x"):
        ItemFilter(only="a,x").mask(CATALOG)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        ("", []),
        (" , ", []),
        ('"a,b",c', ["a,b", "c"]),
        (' " lead" , "trail " ', [" lead", "trail "]),
        ('"""q"""', ['"q"']),
        ('12" vinyl,7" single', ['12" vinyl', '7" single']),
        ('"Alien" (1979),x', ['"Alien" (1979)', "x"]),
        ('"a,b', ['"a', "b"]),
        ('"",a', ["a"]),
    ],
)
def test_ids_are_listed_as_in_csv(text, ids):
    assert listed_ids(text) == ids


def test_ids_with_commas_can_be_allowed_and_denied():
    items = ITEMS.with_columns(item_id=pl.Series(["a,b", " c", "d"]))
    catalog = Catalog(items, Vocabulary(["a,b", " c", "d"]))
    assert ItemFilter(only='"a,b"," c"').mask(catalog).tolist() == [True, True, False]
    assert ItemFilter(exclude='"a,b"').mask(catalog).tolist() == [False, True, True]


def test_a_column_that_was_mapped_is_told_by_what_it_is_called():
    renamed = renamed_columns({"catalog.title": "name", "log.timestamp": "ts", "item_id": "sku"}, TableKind.CATALOG)
    assert renamed == {"name": "title", "sku": "item_id"}
    with pytest.raises(BadInput, match="unknown column 'name'; it was mapped and is called 'title' here"):
        ItemFilter(where="name <> 'Acme'").mask(CATALOG, renamed=renamed)
