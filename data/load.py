"""From a log and a catalog in files to a validated Dataset; every fault found is told at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from data import checks
from data.assemble import Duplicates, Order, assemble
from data.changed_columns import Before, ChangedColumns
from data.columns import TableKind, check_mapping, detect_columns, find_columns, unused_time
from data.faults import Faults, rows_told
from data.schema import ITEM_ID, POSITION, RATING, TEXT, TIMESTAMP, TITLE, USER_ID, VECTOR, Dataset, Histories
from data.table import ROW, Table, read_table
from data.text import MAX_CHARS_PER_PART, default_template, default_user_template, item_texts, item_titles
from data.times import TimestampUnit, told
from store.errors import BadInput


class UnknownItems(StrEnum):
    """What becomes of an interaction with an item that the catalog lacks."""

    REFUSE = "refuse"
    DROP = "drop"


class LoadConfig(BaseModel):
    """How files are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="user_id, item_id, timestamp, rating, position, title or vector (or, for one file only, as in "
        "catalog.item_id) → the column's name in the file",
    )
    timestamp_unit: TimestampUnit = Field(
        TimestampUnit.SECONDS,
        description="s, ms, us or ns since 1970, iso for ISO 8601 text, none to ignore times; columns typed as dates "
        "need none of these",
    )
    min_rating: float | None = Field(
        None,
        description="interactions rated lower teach nothing and are no history, and what was rated so is not "
        "recommended again; unset keeps all",
    )
    duplicates: Duplicates = Field(
        Duplicates.KEEP_ALL,
        description="keep-all, keep-first or keep-last of a user's interactions with one item; exact copies of a row "
        "always go",
    )
    unknown_items: UnknownItems = Field(
        UnknownItems.REFUSE, description="refuse or drop interactions with items that the catalog lacks"
    )
    template: str = Field(
        "", description="an item's text, such as '{title} | {genres}'; empty for title and descriptive columns"
    )
    user_template: str = Field(
        "",
        description="what rerankers are told of a user of the users table, such as 'age {age}'; empty for all columns "
        "whose values several users share",
    )
    max_chars_per_part: int = Field(
        MAX_CHARS_PER_PART, ge=1, description="characters of each column that go into an item's text"
    )


class LoadReport(BaseModel):
    """What was read, what was dropped and why, and what is left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_read: int = Field(description="interactions in the file")
    interactions: int = Field(description="interactions kept")
    dropped: dict[str, int] = Field(description="exact_copies, below_min_rating, unknown_items, repeated_pairs → rows")
    added: int = Field(0, description="interactions that came from elsewhere, such as a service's events")
    users_read: int = Field(description="users in the file of interactions")
    users: int = Field(description="users with an interaction kept")
    items: int = Field(description="items of the catalog")
    items_without_interactions: int = Field(description="of these, the ones that nobody took")
    users_described: int | None = Field(description="of the users, the ones in the users table; None without one")
    order: Order = Field(description="what put the interactions of a user in order")
    template: str = Field(description="the template that made the item texts")
    titled: bool = Field(description="whether the catalog has titles; else they are made of its other columns")
    first_time: str | None = Field(description="UTC time of the earliest interaction")
    last_time: str | None = Field(description="UTC time of the latest interaction")
    rows_without_time: int = Field(description="interactions kept whose time is unknown")


@dataclass(frozen=True, slots=True)
class _Items:
    """item_id, title, text and the file's other columns, the template of the texts, and whether it has titles."""

    frame: pl.DataFrame
    template: str
    titled: bool


@dataclass(frozen=True, slots=True)
class _Log:
    """Interactions in file order, with the numbers of their rows in the file; beside them those rated too low."""

    frame: pl.DataFrame
    rows_read: int
    users_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    added: int = 0
    disliked: pl.DataFrame | None = None


def load_interactions(path: Path, config: LoadConfig) -> pl.DataFrame:
    """user_id, item_id and, where the file has them, timestamp (s), rating, position; in the order of the file.

    Exact copies of a row and rows below `min_rating` are left out.

    Raises:
        BadInput: with all faults of the file.
    """
    faults = Faults()
    log = _read_log(Path(path), config, faults)
    faults.raise_all()
    assert log is not None
    return log.frame.drop(ROW)


def load_items(path: Path, config: LoadConfig, *, before: Before | None = None, where: str = "") -> pl.DataFrame:
    """item_id, title (for people), text (for models), then the file's other columns; in the order of the file.

    Args:
        path: items.
        config: how to read them, with a template if there is a `before`.
        before: of a file that changes some columns, what the others are, since titles and texts may need them. Those
            that the file lacks are not returned, nor are title and text where it says nothing about them.
        where: names the file in errors; empty for its path.

    Raises:
        BadInput: with all faults of the file.
    """
    faults = Faults()
    items = _read_items(Path(path), config, faults, before)
    faults.raise_all(where)
    assert items is not None
    return items.frame


def load_users(path: Path, config: LoadConfig) -> pl.DataFrame:
    """user_id and the file's other columns; in the order of the file.

    Raises:
        BadInput: with all faults of the file.
    """
    faults = Faults()
    users = _read_users(Path(path), config, faults)
    faults.raise_all()
    assert users is not None
    return users


Amend = Callable[[pl.DataFrame, pl.Series], tuple[pl.DataFrame, dict[str, int], int]]
"""Rows of a log and the ids of the catalog → other rows, how many went for which reason, and how many came."""


def load_dataset(
    log: Path, catalog: Path, config: LoadConfig, users: Path | None = None, *, amend: Amend | None = None
) -> tuple[Dataset, LoadReport]:
    """The data set of a log and a catalog: user rows by first appearance in the log, item rows as in the catalog.

    A user's interactions are ordered by `position` if the log has it, else by time, else as in the file; ties keep
    the order of the file.

    Args:
        log: interactions.
        catalog: items.
        config: how to read both.
        users: optional table of users, whose columns tell about who took the items.
        amend: changes the rows of the log before they are matched with the catalog.

    Raises:
        BadInput: with all faults of all files, each with the numbers of its rows.
    """
    faults = Faults()
    check_mapping(config.columns, faults, Path(log))
    read = _read_log(Path(log), config, faults)
    items = _read_items(Path(catalog), config, faults)
    described = _read_users(Path(users), config, faults) if users is not None else None
    if read is not None and items is not None:
        if amend is not None and not faults:
            frame, went, came = amend(read.frame, items.frame[ITEM_ID])
            read = replace(read, frame=frame, dropped={**read.dropped, **went}, added=came)
            if read.disliked is not None:
                # What comes is of a catalog's items: without any nothing does, and only what is to go goes.
                read = replace(read, disliked=amend(read.disliked, items.frame[ITEM_ID].clear())[0])
        read = _without_unknown(read, items.frame[ITEM_ID], Path(log), config, faults)
        if not faults and not len(read.frame):
            rules = ", ".join(f"{rule}: {count:,}" for rule, count in read.dropped.items())
            faults.add(Path(log), f"none of the {read.rows_read:,} interactions is left ({rules})")
    about = None if described is None else _about(described, Path(str(users)), config, faults)
    faults.raise_all()
    assert read is not None
    assert items is not None
    dataset, order, repeated = assemble(read.frame, items.frame, config.duplicates, about=about, disliked=read.disliked)
    if config.duplicates != Duplicates.KEEP_ALL:
        read = replace(read, dropped={**read.dropped, "repeated_pairs": repeated})
    return dataset, _report(dataset, read, items, order, described)


def _report(dataset: Dataset, log: _Log, items: _Items, order: Order, described: pl.DataFrame | None) -> LoadReport:
    times = dataset.interactions.timestamps
    timed = np.zeros(0, dtype=np.int64) if times is None else times[times != Histories.NO_TIME]
    rows = dataset.interactions.item_rows
    return LoadReport(
        rows_read=log.rows_read,
        interactions=len(rows),
        dropped=log.dropped,
        added=log.added,
        users_read=log.users_read,
        users=len(dataset.users),
        items=len(dataset.catalog),
        items_without_interactions=len(dataset.catalog) - len(np.unique(rows)),
        users_described=None if described is None else sum(user in dataset.users for user in described[USER_ID]),
        order=order,
        template=items.template,
        titled=items.titled,
        first_time=told(int(timed.min())) if len(timed) else None,
        last_time=told(int(timed.max())) if len(timed) else None,
        rows_without_time=len(rows) - len(timed),
    )


def _read_log(path: Path, config: LoadConfig, faults: Faults) -> _Log | None:
    table = _read(path, faults)
    if table is None:
        return None
    found = find_columns(table, TableKind.LOG, config.columns, faults)
    columns = _log_columns(table, found, config, faults)
    if config.timestamp_unit != TimestampUnit.NONE and POSITION not in found:
        _refuse_unused_time(table, found, faults)
    if config.min_rating is not None and RATING not in found:
        faults.add(path, f"min_rating = {config.min_rating:g}, but there is no column {RATING!r}")
    if ITEM_ID not in columns:
        return None
    frame = pl.DataFrame([table.frame[ROW], *columns.values()])
    if USER_ID not in columns:  # a fault that ends the loading, after the items have been looked up, too
        return _Log(frame, len(frame), 0)
    return _cleaned(frame, table, config)


def _refuse_unused_time(table: Table, found: Mapping[str, str], faults: Faults) -> None:
    guesses = unused_time(table, found)
    if guesses:
        looks = "looks like one" if len(guesses) == 1 else "look like one"
        faults.add(
            table.path,
            f"no column {TIMESTAMP!r}, but {' and '.join(map(repr, guesses))} {looks}: use --map "
            f"{TIMESTAMP}={guesses[0]}, or use --set data.timestamp_unit=none to take the order of the file",
        )


def _log_columns(table: Table, found: Mapping[str, str], config: LoadConfig, faults: Faults) -> dict[str, pl.Series]:
    columns: dict[str, pl.Series | None] = {
        name: checks.public_ids(table, found[name], faults) for name in (USER_ID, ITEM_ID) if name in found
    }
    if POSITION in found:
        columns[POSITION] = checks.positions(table, found[POSITION], columns.get(USER_ID), faults)
    if TIMESTAMP in found and config.timestamp_unit != TimestampUnit.NONE:
        columns[TIMESTAMP] = checks.times(
            table, found[TIMESTAMP], faults, unit=config.timestamp_unit, may_be_null=POSITION in found
        )
    if RATING in found:
        may_be_null = config.min_rating is None
        columns[RATING] = checks.ratings(table, found[RATING], faults, may_be_null=may_be_null)
    return {name: values.alias(name) for name, values in columns.items() if values is not None}


def _cleaned(frame: pl.DataFrame, table: Table, config: LoadConfig) -> _Log:
    """Without exact copies, and rows below the least rating put aside."""
    comparable = [name for name in table.columns if not table.frame.schema[name].is_nested()]
    first = table.frame.select(pl.struct(comparable).is_first_distinct().alias("first"))["first"]
    kept = frame.filter(first)
    dropped, disliked = {"exact_copies": len(frame) - len(kept)}, None
    if config.min_rating is not None and RATING in kept.columns:
        enough = kept[RATING] >= config.min_rating
        kept, disliked = kept.filter(enough), kept.filter(~enough)
        dropped["below_min_rating"] = len(disliked)
    return _Log(kept, len(frame), frame[USER_ID].n_unique(), dropped, disliked=disliked)


def _read_items(path: Path, config: LoadConfig, faults: Faults, before: Before | None = None) -> _Items | None:
    table = _read(path, faults)
    if table is None:
        return None
    changed = None if before is None else ChangedColumns.of(table, config.columns, before)
    lacked: frozenset[str] = frozenset() if changed is None else changed.lacked
    table = table if changed is None else changed.table
    found = find_columns(table, TableKind.CATALOG, config.columns, faults)
    ids = checks.unique_ids(table, found[ITEM_ID], faults) if ITEM_ID in found else None
    vectors = checks.vectors(table, found[VECTOR], faults) if VECTOR in found and found[VECTOR] not in lacked else None
    # The file's own names stay usable in the template beside ours.
    own = table.frame.drop(ROW)
    named = own.with_columns(own[column].alias(name) for name, column in found.items() if name != VECTOR)
    id_column = found.get(ITEM_ID) or detect_columns(table.columns, TableKind.CATALOG).get(ITEM_ID, "")
    try:
        template = config.template or default_template(named, id_column=id_column)
        texts = item_texts(named, template, max_chars_per_part=config.max_chars_per_part)
    except BadInput as error:
        faults.add(path, str(error))
        return None
    kept = set() if changed is None else changed.kept(template, found, faults)
    absent = texts.is_null()
    if absent.any() and TEXT not in kept:
        rows = rows_told(table.rows(absent))
        faults.add(path, f"{rows}: no text comes out of the template {template!r}; fill a column or drop the item")
        return None
    if ids is None:
        return None
    named = named.with_columns(ids.alias(ITEM_ID))
    rest = own.drop({*found.values(), *lacked, ITEM_ID, TITLE, TEXT} & set(own.columns))
    given = [] if vectors is None else [vectors]
    frame = pl.DataFrame([ids.alias(ITEM_ID), item_titles(named, texts), texts, *given, *rest])
    return _Items(frame.drop(kept), template, TITLE in found)


def _about(users: pl.DataFrame, path: Path, config: LoadConfig, faults: Faults) -> dict[str, str] | None:
    """User id → words; None where the table tells nothing."""
    template = config.user_template or default_user_template(users)
    if not template:
        return None
    try:
        texts = item_texts(users, template, max_chars_per_part=config.max_chars_per_part)
    except BadInput as error:
        faults.add(path, str(error).replace("no column of the catalog", "no column of the users table"))
        return None
    return dict(zip(users[USER_ID].to_list(), texts.fill_null("").to_list(), strict=True))


def _read_users(path: Path, config: LoadConfig, faults: Faults) -> pl.DataFrame | None:
    table = _read(path, faults)
    if table is None:
        return None
    found = find_columns(table, TableKind.USERS, config.columns, faults)
    ids = checks.unique_ids(table, found[USER_ID], faults) if USER_ID in found else None
    if ids is None:
        return None
    rest = table.frame.drop({ROW, found[USER_ID], USER_ID} & set(table.frame.columns))
    return pl.DataFrame([ids.alias(USER_ID), *rest])


def _read(path: Path, faults: Faults) -> Table | None:
    try:
        table = read_table(path)
    except BadInput as error:
        faults.add(path, str(error).removeprefix(f"{path}: "))
        return None
    if not len(table.frame):
        columns = f"columns {', '.join(map(repr, table.columns))}, but no" if table.columns else "neither columns nor"
        faults.add(path, f"the file is empty: {columns} rows")
        return None
    return table


def _without_unknown(log: _Log, item_ids: pl.Series, path: Path, config: LoadConfig, faults: Faults) -> _Log:
    known = log.frame[ITEM_ID].is_in(item_ids.implode())
    strangers = log.frame.filter(~known)
    if config.unknown_items == UnknownItems.DROP:
        dropped = {**log.dropped, "unknown_items": len(strangers)}
        return replace(log, frame=log.frame.filter(known), dropped=dropped)
    if len(strangers):
        ids = strangers[ITEM_ID].unique(maintain_order=True)
        named = ", ".join(repr(item_id) for item_id in ids.head(5)) + (", …" if len(ids) > 5 else "")
        faults.add(
            path,
            f"{len(strangers):,} of {len(log.frame):,} interactions are with {len(ids):,} items that the catalog lacks "
            f"({named}), in {rows_told(strangers[ROW].to_list())}: complete the catalog, "
            "or use --set data.unknown_items=drop",
        )
    return log
