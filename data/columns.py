"""Which column of a file means what: stated mappings, and guesses for files that state none."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import polars as pl

from data.faults import Faults, nearest
from data.schema import ITEM_ID, POSITION, RATING, TIMESTAMP, TITLE, USER_ID, VECTOR
from data.table import ROW, Table
from data.times import are_times


class TableKind(StrEnum):
    """What a file holds."""

    LOG = "log"
    CATALOG = "catalog"
    USERS = "users"


def _names(text: str) -> list[str]:
    return text.split()


_USER = _names(
    "user_id user uid visitor_id visitor reviewer_id reviewer customer_id customer member_id account_id client_id"
    " session_id session"
)
_ITEM = _names(
    "item_id item iid movie_id movie parent_asin asin product_id product book_id book article_id article track_id"
    " song_id video_id news_id business_id game_id app_id sku isbn"
)
_TIME = _names("timestamp time ts unix_review_time unix_time date_time date event_time created_at rated_at review_time")
_TIME_PARTS = set(_names("time timestamp ts date datetime day epoch created at on"))
_TIME_ENDINGS = ("time", "date", "stamp")
_RATING = _names("rating ratings score stars overall rating_value")
_TITLE = _names("title name item_name movie_title product_name product_title book_title headline")

_GUESSES: Mapping[TableKind, Mapping[str, Sequence[str]]] = {
    TableKind.LOG: {
        USER_ID: _USER,
        ITEM_ID: _ITEM,
        TIMESTAMP: _TIME,
        RATING: _RATING,
        POSITION: [POSITION],
    },
    # Vectors are never guessed: what is called so may be anything.
    TableKind.CATALOG: {ITEM_ID: [*_ITEM, "id"], TITLE: _TITLE, VECTOR: []},
    TableKind.USERS: {USER_ID: [*_USER, "id"]},
}
"""Kind of table → canonical name → what people call it, most telling first."""

REQUIRED: Mapping[TableKind, Sequence[str]] = {
    TableKind.LOG: (USER_ID, ITEM_ID),
    TableKind.CATALOG: (ITEM_ID,),
    TableKind.USERS: (USER_ID,),
}

# Files that share an id may call it differently: for these the mapping of the log is only a suggestion.
_BORROWED = {(TableKind.CATALOG, ITEM_ID), (TableKind.USERS, USER_ID)}


def detect_columns(columns: Sequence[str], kind: TableKind) -> dict[str, str]:
    """Canonical name → the column that by its name means it; what cannot be guessed is left out."""
    found: dict[str, str] = {}
    for canonical, guesses in _GUESSES[kind].items():
        if ways := _matching(columns, guesses):
            found[canonical] = ways[0]
    return found


def detect_mapping(log: Sequence[str], catalog: Sequence[str], users: Sequence[str] = ()) -> dict[str, str]:
    """A whole `columns` mapping for `LoadConfig`, with keys such as `log.item_id`, from the columns of the files.

    Where several columns might be the item's id, one that both log and catalog have goes first.
    """
    found = {
        f"{kind}.{canonical}": column
        for kind, columns in (
            (TableKind.LOG, log),
            (TableKind.CATALOG, catalog),
            (TableKind.USERS, users),
        )
        for canonical, column in detect_columns(columns, kind).items()
    }
    shared = [column for column in _matching(log, _ITEM) if column in catalog]
    if shared:
        found[f"{TableKind.LOG}.{ITEM_ID}"] = found[f"{TableKind.CATALOG}.{ITEM_ID}"] = shared[0]
    return found


def find_columns(table: Table, kind: TableKind, mapping: Mapping[str, str], faults: Faults) -> dict[str, str]:
    """Canonical name → column of `table`, by the mapping, else by equal names.

    Args:
        table: the file.
        kind: what it holds.
        mapping: `user_id` or, for one file only, `users.user_id` → the column's name in the file.
        faults: receives mapped columns that are not there, and required ones that nothing stands for.
    """
    found: dict[str, str] = {}
    for canonical in _GUESSES[kind]:
        own, general = mapping.get(f"{kind}.{canonical}"), mapping.get(canonical)
        wanted = own or general
        if wanted in table.columns:
            found[canonical] = str(wanted)
        elif own or (general and (kind, canonical) not in _BORROWED):
            fault = f"no column {wanted!r}, which is to be {canonical}{nearest(str(wanted), table.columns)}"
            faults.add(table.path, f"{fault}; the columns are {_listed(table)}")
        elif canonical in table.columns and canonical != VECTOR:
            found[canonical] = canonical
        elif canonical in REQUIRED[kind]:
            faults.add(table.path, _missing(table, kind, canonical))
    return found


def renamed_columns(mapping: Mapping[str, str], kind: TableKind) -> dict[str, str]:
    """Column of a file → what it is called once read, by the mapping."""
    keys = {name: (name, f"{kind}.{name}") for name in _GUESSES[kind]}
    return {mapping[key]: name for name, ways in keys.items() for key in ways if key in mapping}


def check_mapping(mapping: Mapping[str, str], faults: Faults, path: Path) -> None:
    """Notes keys of a mapping that mean nothing."""
    known = {f"{kind}.{name}" for kind, names in _GUESSES.items() for name in names}
    known |= {name for names in _GUESSES.values() for name in names}
    for key in mapping.keys() - known:
        choice = ", ".join(dict.fromkeys(name for names in _GUESSES.values() for name in names))
        faults.add(path, f"cannot map {key!r}{nearest(key, known)}; what can be mapped: {choice}")


def time_columns(table: Table, owners: Sequence[str]) -> list[str]:
    """Columns of a log that seem to hold its times, most telling first.

    A name says so in whole, or by a part of it as in `event_ts`; then the values must be times that are not those of
    an owner, as a day of birth or of release is. A name known in whole is better than nothing, whatever the values.

    Args:
        table: the log.
        owners: its columns of users and items.
    """
    known = _matching(table.columns, _TIME)
    telling = [column for column in table.columns if column not in owners and _has_time_in_name(column)]
    asked = list(dict.fromkeys((*known, *telling)))
    if asked == known[:1]:  # nothing to choose from: no need to read a large log's values
        return asked
    found = [name for name in asked if are_times(table.frame[name]) and not _belongs_to_one(table, name, owners)]
    return found or known[:1]


def unused_time(table: Table, found: Mapping[str, str]) -> list[str]:
    """Columns that seem to hold times, though nothing says so; none when time is known."""
    if TIMESTAMP in found:
        return []
    return time_columns(table, [found[name] for name in (USER_ID, ITEM_ID) if name in found])


def _has_time_in_name(column: str) -> bool:
    """`event_ts`, `eventTime` and `EVENT_TIME:float` have, `rating` has not."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", column.split(":")[0])
    return any(part.lower() in _TIME_PARTS or part.lower().endswith(_TIME_ENDINGS) for part in parts)


def _belongs_to_one(table: Table, column: str, owners: Sequence[str]) -> bool:
    """Whether the column never changes within one of the owners, so that it tells of the owner and of no event."""
    plain = [owner for owner in owners if owner in table.columns and not table.frame.schema[owner].is_nested()]
    rows = table.frame.select(*dict.fromkeys((*plain, column))).unique()

    def is_settled(owner: str) -> bool:
        known = rows[owner].n_unique()
        return known < len(rows) and rows.select(pl.struct(owner, column).n_unique()).item() == known

    return any(is_settled(owner) for owner in plain)


def _missing(table: Table, kind: TableKind, canonical: str) -> str:
    guess = detect_columns(table.columns, kind).get(canonical)
    example = guess or next((name for name in table.columns if name != ROW), "column")
    hint = f"if {guess!r} is meant, use" if guess else "name the one that is meant, as in"
    key = f"{kind}.{canonical}" if (kind, canonical) in _BORROWED else canonical
    return f"no column {canonical!r}; the columns are {_listed(table)}: {hint} --map {key}={example}"


def _listed(table: Table) -> str:
    return ", ".join(repr(name) for name in table.columns) or "none"


def _matching(columns: Sequence[str], guesses: Sequence[str]) -> list[str]:
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(_bare(column), column)
    return [by_name[_bare(guess)] for guess in guesses if _bare(guess) in by_name]


def _bare(name: str) -> str:
    """`userId`, `USER_ID` and RecBole's `user_id:token` all become `userid`."""
    return "".join(letter for letter in name.split(":")[0].lower() if letter.isalnum())
