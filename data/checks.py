"""Columns of a file as values that can be trusted; what cannot be is noted as a fault with its rows."""

from collections import Counter

import polars as pl

from data.faults import Faults, rows_told
from data.schema import POSITION, TIMESTAMP, VECTOR
from data.table import Table
from data.times import TimestampUnit, in_range, to_seconds, told, unit_that_fits

_UNIT_NAMES = {
    TimestampUnit.SECONDS: "seconds",
    TimestampUnit.MILLISECONDS: "milliseconds",
    TimestampUnit.MICROSECONDS: "microseconds",
    TimestampUnit.NANOSECONDS: "nanoseconds",
    TimestampUnit.ISO: "ISO 8601 dates",
}


def public_ids(table: Table, column: str, faults: Faults) -> pl.Series | None:
    """The column as opaque text, white space and leading noughts kept; None when it cannot be used."""
    values = table.frame[column]
    if kinds := table.mixed.get(column):
        faults.add(table.path, f"{column!r} mixes {kinds}: ids must be of one kind; write all of them as text")
        return None
    if values.null_count() == len(values):
        faults.add(table.path, f"{column!r} holds nothing but nulls in all {len(values):,} rows")
        return None
    if not (values.dtype == pl.String or values.dtype.is_integer()):
        what = "floating-point numbers" if values.dtype.is_float() else f"{values.dtype} values"
        example = values.drop_nulls()[0]
        faults.add(table.path, f"{column!r} holds {what} (such as {example}): ids must be text or whole numbers")
        return None
    ids = values.cast(pl.String)
    empty = ids.is_null() | (ids == "").fill_null(value=False)
    if empty.any():
        faults.add(table.path, f"{column!r} is null or empty in {rows_told(table.rows(empty))}")
        return None
    return ids


def unique_ids(table: Table, column: str, faults: Faults) -> pl.Series | None:
    """As `public_ids`; no id may stand twice."""
    ids = public_ids(table, column, faults)
    if ids is None:
        return None
    again = ~ids.is_first_distinct()
    if again.any():
        example = ids.filter(again)[0]
        rows = rows_told(table.rows(again))
        faults.add(table.path, f"{column!r} repeats an earlier id in {rows} (such as {example!r})")
        return None
    return ids


def times(table: Table, column: str, faults: Faults, *, unit: TimestampUnit, may_be_null: bool) -> pl.Series | None:
    """The column as Int64 Unix seconds; None when it cannot be used."""
    found = table.frame[column]
    seconds = to_seconds(found, unit).alias(TIMESTAMP)
    if fitting := unit_that_fits(found, unit):
        example = found.drop_nulls()[0]
        sense = to_seconds(found, fitting).drop_nulls()[0]
        faults.add(
            table.path,
            f"{column!r} makes no sense as {_UNIT_NAMES[unit]} (such as {example}); as {_UNIT_NAMES[fitting]} it"
            f" would be {told(sense)}: use --set data.timestamp_unit={fitting}",
        )
        return None
    problems = {
        f"cannot be read as {_UNIT_NAMES[unit]} in": seconds.is_null() & found.is_not_null(),
        f"as {_UNIT_NAMES[unit]} lies outside 1970-01-02 … 2100-01-01 in": ~in_range(seconds).fill_null(value=True),
    }
    if not may_be_null:
        problems[
            f"is null, with no {POSITION!r} column to order the rows by (fill it, add positions, or "
            "use --set data.timestamp_unit=none to take the order of the file), in"
        ] = found.is_null()
    met = {problem: mask for problem, mask in problems.items() if mask.any()}
    for problem, mask in met.items():
        example = found.filter(mask)[0]
        such = "" if example is None else f" (such as {example!r})"
        faults.add(table.path, f"{column!r} {problem} {rows_told(table.rows(mask))}{such}")
    return None if met else seconds


def positions(table: Table, column: str, users: pl.Series | None, faults: Faults) -> pl.Series | None:
    """The column as Int64, once each for every user; None when it cannot be used."""
    found = table.frame[column]
    # Text and floating-point numbers may stand for whole ones: 3.0, but not 3.5.
    floats = _numbers(found)
    broken = (floats != floats.floor()).fill_null(value=True) | ~floats.is_finite().fill_null(value=False)
    whole = floats.set(broken, None).cast(pl.Int64)
    bad = whole.is_null()
    if bad.any():
        faults.add(table.path, f"{column!r} is no whole number in {rows_told(table.rows(bad))}")
        return None
    if users is not None:
        again = ~pl.struct(users.alias("user"), whole.alias("place"), eager=True).is_first_distinct()
        if again.any():
            faults.add(
                table.path, f"{column!r} repeats an earlier place of the same user in {rows_told(table.rows(again))}"
            )
            return None
    return whole.alias(POSITION)


def ratings(table: Table, column: str, faults: Faults, *, may_be_null: bool) -> pl.Series | None:
    """The column as Float64; None when it cannot be used."""
    found = table.frame[column]
    values = _numbers(found)
    bad = (values.is_null() & found.is_not_null()) | ~values.is_finite().fill_null(value=True)
    if bad.any():
        example = found.filter(bad)[0]
        faults.add(table.path, f"{column!r} is no number in {rows_told(table.rows(bad))} (such as {example!r})")
        return None
    if found.null_count() and not may_be_null:
        rows = rows_told(table.rows(found.is_null()))
        faults.add(table.path, f"{column!r} is null in {rows}, where min_rating needs a number")
        return None
    return values


def vectors(table: Table, column: str, faults: Faults) -> pl.Series | None:
    """The column as arrays of float32 of one length; None when it cannot be used.

    Lists of numbers are vectors, and so are texts such as `.1|.2`, `.1 .2` or `[.1, .2]`.
    """
    # A table's lists have become text, parted by bars.
    text = table.frame[column].cast(pl.String).str.strip_chars("[] ")
    numbers = text.str.replace_all(r"\s*[,|\s]\s*", "|").str.split("|").cast(pl.List(pl.Float32), strict=False)
    lengths = numbers.list.len()
    usual = max(Counter(lengths.drop_nulls().to_list()).items(), key=lambda one: one[1], default=(0, 0))[0]
    finite = numbers.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    problems = {
        "is null in": numbers.is_null(),
        "holds no number, NaN or infinity in": ~finite.fill_null(value=True),
        f"has not {usual} numbers, as most rows have, in": (lengths != usual).fill_null(value=False),
        "is a vector of length 0 in": ((numbers.list.eval(pl.element() ** 2).list.sum() == 0) & finite).fill_null(
            value=False
        ),
    }
    met = {problem: mask for problem, mask in problems.items() if mask.any()}
    for problem, mask in met.items():
        faults.add(table.path, f"{column!r} {problem} {rows_told(table.rows(mask))}")
    return None if met else numbers.cast(pl.Array(pl.Float32, usual)).alias(VECTOR)


def _numbers(values: pl.Series) -> pl.Series:
    text = values.dtype == pl.String
    return (values.str.strip_chars() if text else values).cast(pl.Float64, strict=False)
