"""Items of a later file in the columns of a catalog."""

import polars as pl
import pytest

from data.more_items import aligned
from store.errors import BadInput

CATALOG = pl.DataFrame(
    {"item_id": ["a"], "title": ["A"], "text": ["A"], "price": [1.5], "year": [1999], "brand": ["x"]}
)


def test_columns_come_in_the_order_and_types_of_the_catalog() -> None:
    more = pl.DataFrame(
        {"year": ["2001"], "colour": ["red"], "price": [3], "text": ["B"], "item_id": ["b"], "title": "B"}
    )
    found = aligned(more, CATALOG, "new.csv")
    assert found.items.schema == CATALOG.schema
    assert found.items.row(0, named=True) == {
        "item_id": "b", "title": "B", "text": "B", "price": 3.0, "year": 2001, "brand": None
    }  # fmt: skip
    assert (found.missing, found.ignored) == (("brand",), ("colour",))


def test_values_that_the_catalog_cannot_hold_are_all_named() -> None:
    more = pl.DataFrame(
        {"item_id": ["b", "c"], "title": "t", "text": "t", "price": ["cheap", "2"], "year": [2001.5, 1999.0]}
    )
    with pytest.raises(BadInput, match=r"new\.csv: 2 faults(.|\n)*'price' holds 'cheap' for item 'b'(.|\n)*2001\.5"):
        aligned(more, CATALOG, "new.csv")
