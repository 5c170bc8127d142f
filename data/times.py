"""Times of any unit as whole Unix seconds."""

from datetime import UTC, datetime
from enum import StrEnum

import polars as pl


class TimestampUnit(StrEnum):
    """What the numbers or texts of a timestamp column are."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"
    ISO = "iso"
    NONE = "none"


PER_SECOND = {
    TimestampUnit.SECONDS: 1,
    TimestampUnit.MILLISECONDS: 1_000,
    TimestampUnit.MICROSECONDS: 1_000_000,
    TimestampUnit.NANOSECONDS: 1_000_000_000,
}

_ALL = (*PER_SECOND, TimestampUnit.ISO)
_LOOKED_AT = 1000
_EARLIEST = 86_400  # 1970-01-02: a nought is a missing value, not a time
_LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_LIKELY_FROM = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp())
_UNLIKELY_UNTIL = int(datetime(1980, 1, 1, tzinfo=UTC).timestamp())


def to_seconds(times: pl.Series, unit: TimestampUnit) -> pl.Series:
    """Int64 Unix seconds, rounded down; null where `times` is null or cannot be read in this unit.

    Columns typed as dates or date-times need no unit and are read as what they are; without a time zone, UTC.
    """
    if times.dtype == pl.Date or isinstance(times.dtype, pl.Datetime):
        return times.cast(pl.Datetime("us")).dt.epoch("us") // PER_SECOND[TimestampUnit.MICROSECONDS]
    if unit == TimestampUnit.ISO:
        return _from_iso(times)
    return _whole(times) // PER_SECOND[unit]


def in_range(seconds: pl.Series) -> pl.Series:
    """True where a time lies between 1970-01-02 and 2100; null where it is null."""
    return seconds.is_between(_EARLIEST, _LATEST)


def unit_that_fits(times: pl.Series, stated: TimestampUnit) -> TimestampUnit | None:
    """The unit that makes sense of all `times` where the stated one does not; None if it does, or none would.

    Besides times out of range, times that all fall before 1980 are suspicious: seconds read as milliseconds.
    """
    seconds = to_seconds(times, stated).drop_nulls()
    sensible = len(seconds) and in_range(seconds).all() and _latest(seconds) >= _UNLIKELY_UNTIL
    if sensible or stated == TimestampUnit.NONE or not _is_plain(times):
        return None
    return next((unit for unit in _ALL if unit != stated and _all_likely(times, unit)), None)


def are_times(values: pl.Series) -> bool:
    """Whether the first thousand of `values` are, in one unit or another, times between 1990 and 2100."""
    first = values.drop_nulls().head(_LOOKED_AT)
    return any(_all_likely(first, unit) for unit in _ALL)


def told(seconds: int) -> str:
    """A time as people write it, in UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _all_likely(times: pl.Series, unit: TimestampUnit) -> bool:
    """Whether all that are not null can be read in this unit, and lie between 1990 and 2100; at least one does."""
    read = to_seconds(times, unit)
    if read.null_count() > times.null_count() or read.null_count() == len(read):
        return False
    lowest = int(read.min())  # type: ignore[arg-type]
    return lowest >= _LIKELY_FROM and _latest(read) <= _LATEST


def _latest(seconds: pl.Series) -> int:
    return int(seconds.max())  # type: ignore[arg-type]


def _is_plain(times: pl.Series) -> bool:
    return times.dtype == pl.String or times.dtype.is_numeric()


def _whole(times: pl.Series) -> pl.Series:
    if times.dtype == pl.String:
        stripped = times.str.strip_chars()
        exact = stripped.cast(pl.Int64, strict=False)
        return exact.fill_null(_whole(stripped.cast(pl.Float64, strict=False)))
    if times.dtype.is_float():
        return times.fill_nan(None).floor().cast(pl.Int64, strict=False)
    if times.dtype.is_numeric():
        return times.cast(pl.Int64, strict=False)
    return pl.Series(times.name, [None] * len(times), dtype=pl.Int64)


def _from_iso(times: pl.Series) -> pl.Series:
    if times.dtype != pl.String:
        return pl.Series(times.name, [None] * len(times), dtype=pl.Int64)
    read = {text: _iso_seconds(text) for text in times.unique().drop_nulls()}
    return (
        times.replace_strict(list(read.keys()), list(read.values()), default=None, return_dtype=pl.Int64)
        if read
        else times.cast(pl.Int64, strict=False)
    )


def _iso_seconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
