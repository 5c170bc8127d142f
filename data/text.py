"""Item row → text, user row → text, history → text: one wording for towers and prompts."""

import difflib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from data.faults import nearest
from data.schema import ITEM_ID, TEXT, TITLE, USER_ID
from store.errors import BadInput

MAX_CHARS_PER_PART = 300

HEADLINES = (TITLE, "name", "headline", "product_name", TEXT)
"""What may be an item's title, the first of them that it has."""
_DETAILS = (
    "categories",
    "genres",
    "brand",
    "authors",
    "author",
    "artist",
    "tags",
    "category",
    "description",
    TEXT,
)

_SEPARATORS = " \t\n|,;:·•/-–—"
_CLOSING = re.compile(r"[)\]}”»\"']+")


@dataclass(frozen=True, slots=True)
class _Part:
    """One `{column}` of a template with the words that come and go with it."""

    before: str
    column: str
    after: str


def item_texts(items: pl.DataFrame, template: str, *, max_chars_per_part: int = MAX_CHARS_PER_PART) -> pl.Series:
    """One text an item: the template with the values of its row, cut to `max_chars_per_part` characters each.

    A column that is null or empty in a row goes with the separator before it, and with the bracket after it.
    `a|b` lists (but not titles) read `a, b`; runs of white space become one blank.

    Args:
        items: one row an item.
        template: such as `{title} | {genres}`; empty for `default_template(items)`.
        max_chars_per_part: what goes beyond it is cut off.

    Returns:
        (N,) text, null where no column of the template has a value.

    Raises:
        BadInput: when the template is malformed or names a column that is not there.
    """
    parts, ending = _parse(template or default_template(items), items.columns)
    text = pl.Series(TEXT, [""] * len(items), dtype=pl.String)
    for number, part in enumerate(parts):
        value = _words(items[part.column], max_chars_per_part)
        opening = part.before if number == 0 else part.before.lstrip(_SEPARATORS)
        columns = pl.DataFrame({"text": text, "value": value})
        joined = pl.format("{}{}{}", pl.lit(part.before), "value", pl.lit(part.after))
        alone = pl.format("{}{}{}", pl.lit(opening), "value", pl.lit(part.after))
        text = columns.select(
            pl.when(pl.col("value").is_null())
            .then("text")
            .when(pl.col("text") == "")
            .then(alone)
            .otherwise(pl.col("text") + joined)
            .alias(TEXT)
        )[TEXT]
    empty = text == ""
    return (text + ending).set(empty, None)


def item_titles(items: pl.DataFrame, texts: pl.Series) -> pl.Series:
    """One title an item, for people: its title, else its name, else its text, else its id."""
    known = [_words(items[column], None) for column in HEADLINES if column in items.columns]
    return pl.select(pl.coalesce(*known, texts, items[ITEM_ID]).alias(TITLE))[TITLE]


def template_columns(template: str) -> list[str]:
    """The columns that a template names.

    Raises:
        BadInput: when it is malformed.
    """
    return list(dict.fromkeys(name for _, name in _pieces(template) if name is not None))


def default_template(items: pl.DataFrame, *, id_column: str = ITEM_ID) -> str:
    """The title (or name) and every descriptive text column there is, joined by ` | `.

    Args:
        items: one row an item.
        id_column: what ids are called where the file does not call them `item_id`; empty where it has none.

    Raises:
        BadInput: when no column is known to describe an item.
    """
    texts = {name for name, kind in items.schema.items() if kind == pl.String}
    headline = [column for column in HEADLINES if column in texts][:1]
    columns = headline + [column for column in _DETAILS if column in texts and column not in headline]
    if not columns:
        raise BadInput(_nothing_describes(items.drop({ITEM_ID, id_column} & set(items.columns)), id_column))
    return " | ".join(f"{{{column}}}" for column in columns)


def _nothing_describes(others: pl.DataFrame, id_column: str) -> str:
    if not others.width:
        return f"no column describes an item, there is nothing but the ids in {id_column!r}: add a column of titles"
    wordy = [column.name for column in others if column.dtype == pl.String and column.str.contains(r"\pL").any()]
    close = difflib.get_close_matches(TITLE, wordy, n=1)
    example = next(iter([*close, *wordy]), "COLUMN")
    beside = f"beside the ids in {id_column!r} " if id_column else ""
    return (
        f"no column is known to describe an item; {beside}there are "
        f"{', '.join(map(repr, others.columns))}: map the one that is the title, as in --map title={example}, "
        f"or give a template such as '{{{example}}}'"
    )


def default_user_template(users: pl.DataFrame) -> str:
    """Every column but the id, each behind its name: `age {age} | occupation {occupation}`.

    Columns in which nearly every user has a value of their own, such as names and addresses, tell nothing that
    carries over to others and are left out; so are those of lists and of nothing.
    """
    columns = [column for column in users.columns if column != USER_ID]
    telling = [column for column in columns if not users.schema[column].is_nested() and _repeats(users[column])]
    return " | ".join(f"{column.replace('_', ' ')} {{{column}}}" for column in telling)


def _repeats(values: pl.Series) -> bool:
    known = values.drop_nulls()
    return len(known) > 0 and 2 * known.n_unique() <= len(known)


def history_text(titles: Sequence[str], *, about: str = "") -> str:
    """A history (titles, oldest first) in words: what is known of the user, then most recent first, joined by `; `."""
    return "; ".join([*([about] if about else []), *reversed(titles)])


def _parse(template: str, columns: Sequence[str]) -> tuple[list[_Part], str]:
    """The parts of a template and the words behind the last one."""
    pieces = _pieces(template)
    unknown = [name for _, name in pieces if name is not None and name not in columns]
    if unknown:
        named = " and ".join(f"{name!r}" for name in dict.fromkeys(unknown))
        hints = nearest(unknown[0], columns)
        raise BadInput(
            f"the template {template!r} names {named}, no column of the catalog{hints} "
            f"(columns: {', '.join(map(repr, columns))})"
        )
    parts: list[_Part] = []
    for words, name in pieces:
        closing = _CLOSING.match(words) if parts else None
        before = words[closing.end() :] if closing else words
        if closing:
            last = parts.pop()
            parts.append(_Part(last.before, last.column, closing[0]))
        if name is None:
            return parts, before
        parts.append(_Part(before, name, ""))
    return parts, ""


def _pieces(template: str) -> list[tuple[str, str | None]]:
    example = "write column names in braces, as in '{title} | {genres}'"
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadInput(f"the template {template!r} is malformed ({error}): {example}") from error
    pieces: list[tuple[str, str | None]] = []
    literal = ""
    for before, name, form, conversion in parsed:
        if form or conversion or name == "":
            raise BadInput(f"the template {template!r} has more than a name, or none, in braces: {example}")
        # The parser hands out "{{" as a piece without a name.
        literal += before
        if name is not None:
            pieces.append((literal, name))
            literal = ""
    if not pieces:
        raise BadInput(f"the template {template!r} names no column: {example}")
    return [*pieces, (literal, None)] if literal else pieces


def _words(values: pl.Series, max_chars: int | None) -> pl.Series:
    """`values` as clean text, null where there is none."""
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise BadInput(f"column {values.name!r} holds {values.dtype} values, which are no text")
    # A float column is often one of whole numbers with gaps: 1995.0 is a year, NaN is nothing.
    floats = values.dtype.is_float()
    text = (values.fill_nan(None) if floats else values).cast(pl.String)
    if floats:
        text = text.str.replace(r"\.0$", "")
    if values.name not in HEADLINES:
        text = text.str.strip_chars(" |").str.replace_all(r"\s*\|[\s|]*", ", ")
    text = text.str.replace_all(r"\s+", " ").str.strip_chars()
    if max_chars is not None:
        text = text.str.head(max_chars).str.strip_chars_end()
    return text.set(text == "", None)
