"""CSV and TSV with quotation marks that enclose no field: read as they stand, or refused by row."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from data.load import LoadConfig, load_items
from data.table import read_table
from store.errors import BadInput

# Titles as they stand between separators, and as they are meant.
TITLES = [
    ('12" vinyl', '12" vinyl'),
    ('"Alien" (1979)', '"Alien" (1979)'),
    ('7" single, 10" LP', None),
    ('"say ""hi"""', 'say "hi"'),
    ('"The Thing"', "The Thing"),
    ("Clue", "Clue"),
    ('5" x 7"', '5" x 7"'),
]
HEADERS = {"csv": "item_id,title,genre", "tsv": "item_id\ttitle\tgenre"}


def table(folder: Path, name: str, text: str) -> pl.DataFrame:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_table(path).frame


def refused(folder: Path, name: str, text: str) -> str:
    with pytest.raises(BadInput) as caught:
        table(folder, name, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["items.csv", "items.tsv", "items.csv.gz", "items.tsv.gz"])
def test_marks_that_enclose_no_field_stay_and_those_that_do_go(tmp_path: Path, name: str, end: str):
    kind = name.split(".")[1]
    separator = "," if kind == "csv" else "\t"
    titles = [(raw, meant or raw) for raw, meant in TITLES if meant or separator == "\t"]
    lines = [separator.join([f"{place:02d}", raw, ""]) for place, (raw, _) in enumerate(titles)]
    frame = table(tmp_path, name, end.join(["\ufeff" + HEADERS[kind], *lines, ""]))
    assert frame["title"].to_list() == [meant for _, meant in titles]
    assert frame["item_id"].to_list() == [f"{place:02d}" for place in range(len(titles))]
    assert frame["genre"].null_count() == len(titles)
    assert frame["\0row"].to_list() == list(range(2, len(titles) + 2))


def test_a_single_inch_mark_does_not_refuse_a_catalog(tmp_path: Path):
    (tmp_path / "items.csv").write_text('item_id,title\n1,one\n2,12" vinyl\n3,three\n')
    items = load_items(tmp_path / "items.csv", LoadConfig())
    assert items.rows() == [("1", "one", "one"), ("2", '12" vinyl', '12" vinyl'), ("3", "three", "three")]


def test_fields_of_several_lines_beside_an_inch_mark_are_one_row(tmp_path: Path):
    text = 'item_id,title,genre\n1,"a\nb, c",x\n\n2,12" vinyl,y\n'
    frame = table(tmp_path, "items.csv", text)
    assert frame.rows() == [(2, "1", "a\nb, c", "x"), (4, "2", '12" vinyl', "y")]


def test_marks_of_two_rows_of_a_tsv_do_not_make_them_one(tmp_path: Path):
    text = 'item_id\ttitle\n1\t"Alien\n2\ttwo\n3\tBob" x\n4\t12" vinyl\n'
    assert table(tmp_path, "items.tsv", text)["title"].to_list() == ['"Alien', "two", 'Bob" x', '12" vinyl']


def test_a_csv_whose_marks_may_enclose_one_row_or_several_is_refused(tmp_path: Path):
    text = 'item_id,title\n1,one\n2,"Alien\n3,"\n4,12" vinyl\n'
    assert r"""row 3 ('2,"Alien') may be one row or several""" in refused(tmp_path, "items.csv", text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '1,12" vinyl\n2,two,b\n',
            "row 3 ('2,two,b') has 3 fields, but the header has 2: put a field that holds a comma",
        ),
        ('1,12" vinyl\n\n2\n', "row 4 ('2') has 1 field, but the header has 2"),
        ('1,one\n2,"Alien, "the\n3,three\n', """row 3 ('2,"Alien, "the') has a field that begins with a quotation"""),
        ('1,"Alien" (1979)\n2,"a\nb"\n', """row 2 ('1,"Alien" (1979)') has a field that begins with a quotation"""),
        ('1,"Alien" (1979)\n2,two\n3,three,c\n', "row 4 ('3,three,c') has 3 fields"),
    ],
)
def test_rows_that_neither_reading_understands_are_named(tmp_path: Path, text: str, told: str):
    assert told in refused(tmp_path, "items.csv", "item_id,title\n" + text)


def test_columns_are_named_as_in_any_other_file(tmp_path: Path):
    proper, loose = (f"id,id,,\n1,2,3,{title}\n" for title in ("x", '12" x'))
    assert table(tmp_path, "loose.csv", loose).columns == table(tmp_path, "proper.csv", proper).columns
