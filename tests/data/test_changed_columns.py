"""What a file of some columns tells of items that a catalog has, and what it leaves as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.load import LoadConfig, load_items
from store.errors import BadInput
from tests.data.files import write

KNOWN = {"a": {"title": "A", "genres": "x|y", "price": 1}, "b": {"title": "B", "genres": None, "price": 2}}
TITLED = LoadConfig(template="{title} | {genres}")


def changed(
    folder: Path, rows: list[dict[str, Any]], config: LoadConfig = TITLED, **known: Any
) -> list[dict[str, Any]]:
    """What a file of `rows` tells, where the catalog has KNOWN, but for `known`; "-" takes a column away."""

    def before(ids: Sequence[str]) -> pl.DataFrame:
        merged = [{**KNOWN[one], **known} for one in ids]
        return pl.DataFrame([{name: value for name, value in row.items() if value != "-"} for row in merged])

    return load_items(write(folder / "changes.jsonl", rows), config, before=before).to_dicts()


def test_texts_are_made_with_the_columns_that_the_file_lacks(tmp_path: Path):
    rows = [{"item_id": "b", "title": "New"}, {"item_id": "a", "title": "Old"}]
    expected = [
        {"item_id": "b", "title": "New", "text": "New"},
        {"item_id": "a", "title": "Old", "text": "Old | x, y"},
    ]
    assert changed(tmp_path, rows) == expected
    assert changed(tmp_path, [{"item_id": "b", "genres": "z"}]) == [{"item_id": "b", "text": "B | z", "genres": "z"}]


def test_nothing_is_told_of_a_text_that_the_file_says_nothing_about(tmp_path: Path):
    assert changed(tmp_path, [{"item_id": "a", "price": 9}]) == [{"item_id": "a", "price": 9}]
    assert changed(tmp_path, [{"item_id": "a"}]) == [{"item_id": "a"}]
    with_id = LoadConfig(template="{title} {item_id} {sku}", columns={"item_id": "sku"})
    assert changed(tmp_path, [{"sku": "a", "price": 9}], with_id) == [{"item_id": "a", "price": 9}]


def test_a_null_is_told(tmp_path: Path):
    found = changed(tmp_path, [{"item_id": "a", "genres": None}])
    assert found == [{"item_id": "a", "text": "A", "genres": None}]


def test_a_title_is_made_anew_by_what_it_was_made_of(tmp_path: Path):
    named = LoadConfig(template="{name} | {genres}")
    rows = [{"item_id": "a", "name": "New"}]
    expected = {"item_id": "a", "title": "New", "text": "New | x, y", "name": "New"}
    assert changed(tmp_path, rows, named, title="-", name="Old") == [expected]
    assert changed(tmp_path, [{"item_id": "a", "price": 9}], named, title="-", name="Old") == [
        {"item_id": "a", "price": 9}
    ]


def test_a_title_of_its_own_stays_beside_another_name(tmp_path: Path):
    named = LoadConfig(template="{name}")
    found = changed(tmp_path, [{"item_id": "a", "name": "New"}], named, name="Old")
    assert found == [{"item_id": "a", "text": "New", "name": "New"}]


def test_a_mapped_title_that_the_file_lacks_stays(tmp_path: Path):
    mapped = LoadConfig(template="{title} | {genres}", columns={"title": "label"})
    found = changed(tmp_path, [{"item_id": "a", "genres": "z"}], mapped, title="-", label="A")
    assert found == [{"item_id": "a", "text": "A | z", "genres": "z"}]


def test_a_text_column_that_is_not_kept_has_to_be_given(tmp_path: Path):
    own = LoadConfig(template="{title} | {text}")
    with pytest.raises(
        BadInput, match=r"made of 'title' and 'text' .*'\{title\} \| \{text\}'.*give 'text', too"
    ) as told:
        changed(tmp_path, [{"item_id": "a", "title": "New"}], own, text="A | long")
    assert str(told.value).startswith(str(tmp_path / "changes.jsonl"))
    assert changed(tmp_path, [{"item_id": "a", "price": 9}], own, text="A | long") == [{"item_id": "a", "price": 9}]
    found = changed(tmp_path, [{"item_id": "a", "text": "short"}], own, text="A | long")
    assert found == [{"item_id": "a", "text": "A | short"}]


def test_faults_of_the_ids_are_told_once(tmp_path: Path):
    with pytest.raises(BadInput, match=r"^[^\n]*repeats an earlier id in row 2[^\n]*$"):
        changed(
            tmp_path,
            [{"item_id": "a", "genres": "x"}, {"item_id": "a", "genres": "y"}],
            LoadConfig(template="{genres}"),
        )


def test_a_file_may_be_called_something_else(tmp_path: Path):
    file = write(tmp_path / "item.jsonl", [{"item_id": "a", "title": None}])
    with pytest.raises(BadInput, match=r"^the item: row 1: no text comes out"):
        load_items(file, LoadConfig(template="{title}"), where="the item")
