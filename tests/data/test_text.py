"""Texts from templates: what is missing goes without a trace."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.text import default_template, history_text, item_texts, item_titles
from store.errors import BadInput


def text(template: str, **row) -> str | None:
    return item_texts(pl.DataFrame([{"item_id": "1", **row}], infer_schema_length=None), template)[0]


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{title} | {genres}", {"title": "Alien", "genres": "Horror|Sci-Fi"}, "Alien | Horror, Sci-Fi"),
        ("{title} | {genres}", {"title": "Alien", "genres": None}, "Alien"),
        ("{title} | {genres}", {"title": "", "genres": "Horror"}, "Horror"),
        ("{title} | {genres}", {"title": None, "genres": None}, None),
        ("{title} ({year})", {"title": "Alien", "year": 1979}, "Alien (1979)"),
        ("{title} ({year}) | {genres}", {"title": "Alien", "year": None, "genres": "Horror"}, "Alien | Horror"),
        ("{title} ({year}).", {"title": "Alien", "year": None}, "Alien."),
        ("Film: {title}, by {author}", {"title": "Alien", "author": "Scott"}, "Film: Alien, by Scott"),
        ("Film: {title}, by {author}", {"title": None, "author": "Scott"}, "by Scott"),
        ("{{{title}}}", {"title": "Alien"}, "{Alien}"),
        ("{title} {{x}}", {"title": "Alien"}, "Alien {x}"),
        ("{year}", {"year": 1979.0}, "1979"),
        ("{price}", {"price": 19.5}, "19.5"),
        ("{price}", {"price": float("nan")}, None),
        ("{title}", {"title": "  a \n\t b  "}, "a b"),
        ("{title}", {"title": "Hair | Body"}, "Hair | Body"),
        ("{tags}", {"tags": "|a| |b |"}, "a, b"),
        ("{a}{b}", {"a": "x", "b": "y"}, "xy"),
        ("{a} | {b} | {c}", {"a": "x", "b": None, "c": "z"}, "x | z"),
        ("{good}", {"good": True}, "true"),
    ],
)
def test_a_template_says_what_is_there(template, row, expected):
    assert text(template, **row) == expected


def test_long_parts_are_cut():
    items = pl.DataFrame({"title": ["abcd efgh"], "genres": ["12345678"]})
    assert item_texts(items, "{title} | {genres}", max_chars_per_part=5)[0] == "abcd | 12345"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{titel}", r"names 'titel', no column of the catalog; did you mean 'title'\? \(columns: 'title', 'year'\)"),
        ("{title", "malformed"),
        ("title", "names no column"),
        ("{}", "more than a name, or none"),
        ("{title!r}", "more than a name"),
        ("{year:04d}", "more than a name"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, told):
    with pytest.raises(BadInput, match=told):
        item_texts(pl.DataFrame({"title": ["a"], "year": [1]}), template)


def test_the_default_is_the_title_and_what_describes_in_words():
    frame = pl.DataFrame({"item_id": ["1"], "description": ["d"], "title": ["t"], "genres": ["g"], "tags": [3]})
    assert default_template(frame) == "{title} | {genres} | {description}"
    assert default_template(pl.DataFrame({"name": ["n"], "text": ["x"]})) == "{name} | {text}"
    assert default_template(pl.DataFrame({"text": ["x"]})) == "{text}"


def test_where_nothing_describes_an_item_the_advice_names_a_column_that_could():
    with pytest.raises(
        BadInput, match=r"beside the ids in 'item_id' there are 'weight', 'colour': .*--map title=colour"
    ):
        default_template(pl.DataFrame({"item_id": ["1"], "weight": ["20"], "colour": ["red"]}))
    items = {"article": ["a", "b"], "item_id": ["a", "b"]}
    with pytest.raises(BadInput, match="nothing but the ids in 'article': add a column of titles"):
        default_template(pl.DataFrame(items), id_column="article")
    with pytest.raises(BadInput, match=r"beside the ids in 'article' there are 'price': .*--map title=COLUMN"):
        default_template(pl.DataFrame({**items, "price": ["1", "2"]}), id_column="article")


def test_titles_fall_back_to_names_texts_and_ids():
    items = pl.DataFrame(
        {"item_id": ["1", "2", "3", "4"], "title": ["t", None, "", None], "name": ["a", "b", None, None]}
    )
    texts = pl.Series("text", ["x", "x", "x", None])
    assert item_titles(items, texts).to_list() == ["t", "b", "x", "4"]


def test_a_history_reads_most_recent_first():
    assert history_text(["old", "new"]) == "new; old"
    assert history_text([]) == ""


words = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Cf"], blacklist_characters="|"), min_size=1
)


@given(st.lists(st.none() | words, min_size=1, max_size=5))
def test_the_parts_that_are_there_are_joined_as_if_there_were_no_others(values):
    row = {f"c{place}": value for place, value in enumerate(values)}
    frame = pl.DataFrame([row], schema=dict.fromkeys(row, pl.String))
    found = item_texts(frame, " | ".join(f"{{{name}}}" for name in row))[0]
    present = [value for value in values if value is not None]
    assert found == (" | ".join(present) if present else None)
