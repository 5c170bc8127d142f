"""Conditions on catalog columns: what holds where, against Python's own reading; and every fault with its place."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import ITEM_ID
from index.filters import DEEPEST, FUNCTIONS, MOST_JOINED, FilterFault, filter_mask

ITEMS = pl.DataFrame(
    {
        ITEM_ID: ["1", "2", "3", "4"],
        "price": [5.0, 20.0, None, float("nan")],
        "pages": [100, 200, 300, None],
        "brand": ["Acme", "Other", None, "acme"],
        "in stock": [True, False, True, None],
        "weight": ["1.5", " 20", "", None],
        "since": [dt.date(2020, 1, 1), dt.date(2024, 6, 1), None, dt.date(2022, 2, 2)],
        "tags": [["a"], [], None, ["b"]],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price < 20", [0]),
        ("price <= 20 AND brand <> 'Acme'", [1]),
        ("NOT price < 20", [1]),
        ("price >= 0 OR pages = 300", [0, 1, 2]),
        ("price < 20 OR price >= 20 AND pages > 1000", [0]),
        ("(price < 20 OR price >= 20) AND pages > 100", [1]),
        ("price IS NULL", [2, 3]),
        ("brand IS NOT NULL", [0, 1, 3]),
        ("brand = NULL", []),
        ("brand IN ('Acme', 'Other')", [0, 1]),
        ("brand NOT IN ('Acme')", [1, 3]),
        ("pages BETWEEN 100 AND 200", [0, 1]),
        ("pages NOT BETWEEN 100 AND 200", [2]),
        ("brand LIKE 'A%'", [0]),
        ("brand ILIKE 'a_me'", [0, 3]),
        ("brand NOT LIKE 'A%'", [1, 3]),
        ("lower(brand) = 'acme'", [0, 3]),
        ("length(brand) = 5", [1]),
        ("starts_with(upper(brand), 'AC')", [0, 3]),
        ("price * 2 + 1 > pages / 10", [0, 1]),
        ("pages % 200 = 100", [0, 2]),
        ("-pages < -150", [1, 2]),
        ("pages > -1.5e1", [0, 1, 2]),
        ("pages <> 1.5", [0, 1, 2]),
        ('"in stock"', [0, 2]),
        ('NOT "in stock" AND "price" = 20', [1]),
        ("weight > 2", [1]),
        ("abs(weight) IN (1.5)", [0]),
        ("weight = '1.5'", [0]),
        ("item_id = '3'", [2]),
        ("since > DATE '2021-12-31'", [1, 3]),
        ("brand || '!' = 'Acme!'", [0]),
        ("price < 20 and BRAND_is = 1".replace("BRAND_is = 1", "brand = 'Acme'"), [0]),
        ("1 = 1 AND price > 0", [0, 1]),
    ],
)
def test_holds_where_it_says(text: str, rows: list[int]) -> None:
    mask = filter_mask(ITEMS, text)
    assert mask.dtype == np.bool_
    assert mask.shape == (4,)
    assert np.flatnonzero(mask).tolist() == rows


@pytest.mark.parametrize(
    ("text", "character", "told"),
    [
        ("", 1, "empty"),
        ("price <", 8, "it ends where a column or a value is expected"),
        ("price < 20 AND", 15, "it ends"),
        ("price < 20 20", 12, "'20' is not expected here"),
        ("(price < 20", 12, "found the end, expected [)]"),
        ("brand = 'Acme", 9, "quotation mark is not closed"),
        ("price # 3", 7, "'#' is not understood"),
        ("price < 20; DROP", 11, "';' is not understood"),
        ("price < 20 -- all", 12, "'-' is not understood"),
        ("prise < 20", 1, "unknown column 'prise'.*'price'"),
        ('brand = "Acme"', 9, "unknown column 'Acme'.*single quotes"),
        ("price < 'abc'", 9, "text, compared with a number"),
        ("brand > 3", 9, "a number, compared with text"),
        ("item_id = 3", 11, "a number, compared with text"),
        ("pages IN (1, 'a')", 14, "text, compared with a number"),
        ("pages BETWEEN 1 AND 'a'", 21, "text, compared with a number"),
        ("since > '2020-01-01'", 9, "text, compared with a date or time.*DATE '2026-01-31'"),
        ("brand + 1 > 2", 1, "text, expected a number"),
        ("price", 1, "a number, expected a truth value"),
        ("price AND brand = 'a'", 1, "a number, expected a truth value"),
        ("NOT price", 5, "a number, expected a truth value"),
        ("price LIKE 'a'", 1, "a number, expected text"),
        ("brand LIKE brand", 12, "expected a value"),
        ("brand NOT 3", 11, "expected BETWEEN, LIKE or IN"),
        ("brand IS 3", 10, "found '3', expected NULL"),
        ("tags = 'a'", 1, "nested"),
        ("brand IN (SELECT brand)", 11, "expected a value"),
        ("price < count(price)", 9, "the function count is not allowed; these are: lower"),
        ("read_csv('x') = 1", 1, "read_csv is not allowed"),
        ("lower(price) = 'a'", 7, "a number, expected text"),
        ("lower(brand, 1) = 'a'", 12, "found ',', expected [)]"),
        ("CASE WHEN price < 1 THEN 1 END = 1", 1, "unknown column 'CASE'"),
        ("price::int < 1", 6, "':' is not understood"),
        ("brand.x = 1", 6, r"'\.' is not"),
    ],
)
def test_every_fault_is_told_with_its_place(text: str, character: int, told: str) -> None:
    with pytest.raises(FilterFault, match=f"character {character}: (?s:.*){told}") as caught:
        filter_mask(ITEMS, text)
    if text:
        assert str(caught.value).splitlines()[-2:] == [f"  {text}", "  " + " " * (character - 1) + "^"]


def test_a_column_of_text_counts_as_numbers_only_where_all_values_are() -> None:
    items = ITEMS.with_columns(pl.Series("weight", ["1", "2", "three", None]))
    with pytest.raises(FilterFault, match="character 10"):
        filter_mask(items, "weight < 2")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_is_allowed_can_be_computed(name: str) -> None:
    takes, gives = FUNCTIONS[name]
    arguments = ", ".join({"text": "brand", "a number": "price"}[kind] for kind in takes)
    end = {"text": "= 'a'", "a number": "> 1", "a truth value": ""}[gives]
    assert filter_mask(ITEMS, f"{name}({arguments}) {end}").shape == (4,)


@pytest.mark.parametrize(
    ("opens", "inside", "closes"),
    [
        ("(", "pages = 100", ")"),
        ("NOT ", "pages = 100", ""),
        ("pages = 100 AND (", "pages = 100", ")"),
        ("- ", "pages = 100", ""),
        ("abs(", "pages", ") = 100"),
    ],
)
def test_parts_stand_in_each_other_so_deep_and_no_deeper(opens: str, inside: str, closes: str) -> None:
    def nested(levels: int) -> str:
        close, _, after = closes.partition(" ")
        return f"{opens * levels}{inside}{close * levels} {after}"

    assert np.flatnonzero(filter_mask(ITEMS, nested(DEEPEST))).tolist() == [0]
    for levels in (DEEPEST + 1, 450, 5_000):
        with pytest.raises(FilterFault, match=f"stand {DEEPEST} deep"):
            filter_mask(ITEMS, nested(levels))


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ("pages = 100", " AND pages = 100"),
        ("pages = 100", " OR brand = 'Acme'"),
        ("100 = pages", " + 0"),
        ("100 = pages", " * 1"),
        ("'Acme' = brand", " || ''"),
    ],
)
def test_parts_are_joined_so_often_and_no_oftener(first: str, more: str) -> None:
    assert np.flatnonzero(filter_mask(ITEMS, first + more * MOST_JOINED)).tolist() == [0]
    with pytest.raises(FilterFault, match=f"{MOST_JOINED} AND, OR and operators"):
        filter_mask(ITEMS, first + more * (MOST_JOINED + 1))


def test_a_list_may_be_longer() -> None:
    assert np.flatnonzero(filter_mask(ITEMS, f"pages IN ({'-1, ' * 1_000}100)")).tolist() == [0]


NUMBERS = st.integers(-3, 3)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["<", "<=", "=", "<>", ">", ">="]), st.sampled_from(["a", "b"]), NUMBERS),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.tuples(st.just("NOT"), inner), st.tuples(st.sampled_from(["AND", "OR"]), inner, inner)),
    max_leaves=8,
)


def written(tree: tuple) -> str:
    if tree[0] == "NOT":
        return f"NOT ({written(tree[1])})"
    if tree[0] in ("AND", "OR"):
        return f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"
    return f"{tree[1]} {tree[0]} {tree[2]}"


def holds(tree: tuple, row: dict[str, int | None]) -> bool | None:
    """SQL's three truth values, written out."""
    if tree[0] == "NOT":
        inner = holds(tree[1], row)
        return None if inner is None else not inner
    if tree[0] in ("AND", "OR"):
        parts = {holds(tree[1], row), holds(tree[2], row)}
        decisive = tree[0] == "OR"
        return decisive if decisive in parts else None if None in parts else not decisive
    value, other = row[tree[1]], tree[2]
    if value is None:
        return None
    operations = {"<": value < other, "<=": value <= other, "=": value == other}
    operations |= {"<>": value != other, ">": value > other, ">=": value >= other}
    return operations[tree[0]]


@settings(deadline=None, max_examples=100)
@given(tree=TREES, rows=st.lists(st.tuples(st.none() | NUMBERS, st.none() | NUMBERS), min_size=1, max_size=6))
def test_logic_agrees_with_three_truth_values(tree: tuple, rows: list[tuple[int | None, int | None]]) -> None:
    items = pl.DataFrame(rows, schema={"a": pl.Int64, "b": pl.Int64}, orient="row")
    expected = [holds(tree, {"a": a, "b": b}) is True for a, b in rows]
    assert filter_mask(items, written(tree)).tolist() == expected
