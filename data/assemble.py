"""Validated rows of a log and a catalog, as a Dataset of rows."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Literal

import numpy as np
import polars as pl

from data.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Catalog, Dataset, Disliked, Histories
from data.vocabulary import Vocabulary

_USER_ROW = "user_row"
_ITEM_ROW = "item_row"


class Duplicates(StrEnum):
    """What becomes of a user's second interaction with the same item.

    In every case a row that equals an earlier one in all columns of the file is dropped.
    """

    KEEP_ALL = "keep-all"
    KEEP_FIRST = "keep-first"
    KEEP_LAST = "keep-last"


class Order(StrEnum):
    """What puts a user's interactions in order; ties keep the order of the file."""

    POSITION = "position"
    TIMESTAMP = "timestamp"
    FILE = "file"


def assemble(
    log: pl.DataFrame,
    items: pl.DataFrame,
    duplicates: Duplicates,
    *,
    about: Mapping[str, str] | None = None,
    disliked: pl.DataFrame | None = None,
) -> tuple[Dataset, Order, int]:
    """User rows by first appearance in `log`, item rows as in `items`, interactions in order.

    Args:
        log: user_id, item_id and, where known, position, timestamp (s) and rating, in the order of the file; every
            item_id is one of `items`.
        items: item_id, title, text, and any other columns.
        duplicates: what to keep of a user's interactions with one item.
        about: user_id → words on that user.
        disliked: columns as of `log`, of what was rated too low to count; items that the catalog lacks stay out.

    Returns:
        The data set, what ordered it, and how many repeated interactions were dropped.
    """
    users = log[USER_ID].unique(maintain_order=True)
    order = next((way for way in (Order.POSITION, Order.TIMESTAMP) if way in log.columns), Order.FILE)
    keys = [_USER_ROW] if order == Order.FILE else [_USER_ROW, order]
    frame = log.with_columns(
        _row_of(log[USER_ID], users).alias(_USER_ROW), _row_of(log[ITEM_ID], items[ITEM_ID]).alias(_ITEM_ROW)
    ).sort(keys, maintain_order=True)
    if duplicates != Duplicates.KEEP_ALL:
        keep: Literal["first", "last"] = "first" if duplicates == Duplicates.KEEP_FIRST else "last"
        frame = frame.unique(subset=[_USER_ROW, _ITEM_ROW], keep=keep, maintain_order=True)
    catalog = Catalog(items, Vocabulary(items[ITEM_ID].to_list()))
    histories = _histories(frame, len(users))
    if about is not None:
        words = np.array([about.get(user_id, "") for user_id in users.to_list()], dtype=np.object_)
        histories = replace(histories, about=words)
    low = None if disliked is None else _disliked(disliked, items)
    dataset = Dataset(histories, Vocabulary(users.to_list(), noun="user"), catalog, disliked=low)
    return dataset, order, len(log) - len(frame)


def _disliked(log: pl.DataFrame, items: pl.DataFrame) -> Disliked | None:
    known = log.filter(pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
    if not len(known):
        return None
    users = known[USER_ID].unique(maintain_order=True)
    frame = known.with_columns(
        _row_of(known[USER_ID], users).alias(_USER_ROW), _row_of(known[ITEM_ID], items[ITEM_ID]).alias(_ITEM_ROW)
    ).sort(_USER_ROW, maintain_order=True)
    interactions = replace(_histories(frame, len(users)), ratings=None)
    return Disliked(interactions, Vocabulary(users.to_list(), noun="user"))


def _histories(frame: pl.DataFrame, n_users: int) -> Histories:
    counts = np.bincount(frame[_USER_ROW].to_numpy(), minlength=n_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = frame[TIMESTAMP].fill_null(Histories.NO_TIME).to_numpy() if TIMESTAMP in frame.columns else None
    ratings = frame[RATING].cast(pl.Float32).fill_null(np.nan).to_numpy() if RATING in frame.columns else None
    return Histories(frame[_ITEM_ROW].to_numpy(), offsets, times, ratings=ratings)


def _row_of(ids: pl.Series, vocabulary: pl.Series) -> pl.Series:
    rows = pl.DataFrame({"id": vocabulary, "row": np.arange(len(vocabulary), dtype=np.int64)})
    return pl.DataFrame({"id": ids}).join(rows, on="id", how="left", maintain_order="left")["row"]
