"""CSV and TSV whose quotation marks enclose no field, as in 12" vinyl or "Alien" (1979)."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from store.errors import BadInput

_MARK = '"'
_NAMES = {",": "comma", "\t": "tab"}
_SHOWN = 60


@dataclass(frozen=True)
class _Fault:
    """Why a file cannot be read in one of two ways.

    Attributes:
        row: where, as `data.table` counts.
        within: whether it may be but a part of a row, since its line leaves a quotation mark open.
    """

    row: int
    words: str
    within: bool = False


def read_loosely(path: Path, separator: str) -> pl.DataFrame:
    """The file's columns as text, its quotation marks taken as they stand where they do not enclose a field.

    There are two ways to read it: by marks, a row ends where a line does outside of marks; by lines, it ends there in
    any case. A TSV is read by lines where it can be. Where both ways read a CSV, but not alike, it is refused.

    Raises:
        BadInput: naming a row that does not have as many fields as the header, or may be several rows.
        UnicodeDecodeError: when it is no UTF-8.
    """
    first, second = (_by_lines, _by_marks) if separator == "\t" else (_by_marks, _by_lines)
    found = first(path, separator)
    if not isinstance(found, _Fault) and (separator == "\t" or not any("\n" in "".join(row) for row in found)):
        return _frame(found)
    other = second(path, separator)
    if isinstance(found, _Fault):
        if not isinstance(other, _Fault):
            return _frame(other)
        # Whichever came further has understood more of the file, unless it stopped within a field of several lines.
        further = max(found, other, key=lambda fault: 0 if fault.within else fault.row)
        raise BadInput(f"{path}: row {further.row:,} {further.words}")
    if isinstance(other, _Fault):
        return _frame(found)
    row = next(row for row, (one, another) in enumerate(zip(found, other, strict=False)) if one != another)
    raise BadInput(
        f"{path}: row {row + 1:,} ({_shown(separator.join(other[row]))}) may be one row or several, by its "
        "quotation marks: write those that belong to a text twice, and one more around the whole field"
    )


def _by_lines(path: Path, separator: str) -> list[list[str]] | _Fault:
    rows: list[list[str]] = []
    for line in _lines(path):
        text = line.removesuffix("\n").removesuffix("\r")
        width = len(rows[0]) if rows else None
        fields = _fields(text, separator, width)
        if text and width is not None and len(fields) != width:
            fault = _miscounted(len(rows) + 1, text, len(fields), width, separator)
            return replace(fault, within=text.count(_MARK) % 2 == 1)
        rows.append(fields)
    return rows


def _fields(text: str, separator: str, width: int | None) -> list[str]:
    """Those of one line: in proper CSV where it is, else whatever stands between separators."""
    if not text:
        return []
    plain = text.split(separator)
    if _MARK not in text:
        return plain
    try:
        found = next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        found = []
    if found and width in (None, len(found)):
        return found
    return [_unmarked(field) for field in plain]


def _unmarked(field: str) -> str:
    inside = field[1:-1].replace(2 * _MARK, "")
    enclosed = len(field) > 1 and field[0] == field[-1] == _MARK and _MARK not in inside
    return field[1:-1].replace(2 * _MARK, _MARK) if enclosed else field


def _by_marks(path: Path, separator: str) -> list[list[str]] | _Fault:
    rows: list[list[str]] = []
    taken: list[str] = []

    def told() -> Iterator[str]:
        for line in _lines(path):
            taken.append(line)
            yield line

    try:
        for fields in csv.reader(told(), delimiter=separator, strict=True):
            if rows and fields and len(fields) != len(rows[0]):
                return _miscounted(len(rows) + 1, "".join(taken), len(fields), len(rows[0]), separator)
            rows.append(fields)
            taken.clear()
    except csv.Error:
        return _Fault(
            len(rows) + 1,
            f"({_shown(''.join(taken))}) has a field that begins with a quotation mark and does not end with the next "
            f'one: write marks within it twice and one more around the whole field, as in "12"" vinyl"',
        )
    return rows


def _miscounted(row: int, text: str, found: int, expected: int, separator: str) -> _Fault:
    fields = "1 field" if found == 1 else f"{found:,} fields"
    return _Fault(
        row,
        f"({_shown(text)}) has {fields}, but the header has {expected:,}: put a field that holds a "
        f"{_NAMES[separator]} or a line end between quotation marks, and write those within it twice",
    )


def _frame(rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    """The rows through the same reader as any other file, written as it wants them."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    frame = pl.read_csv(written.getvalue().encode(), infer_schema=False)
    # A blank line is no row, and at the end of the file it may not count either.
    full = sum(any(row) for row in rows[1:])
    read = len(frame) - int(frame.select(pl.all_horizontal(pl.all().fill_null("") == "")).to_series().sum())
    if read != full:
        raise pl.exceptions.ComputeError(f"of {full:,} rows {read:,} were read")
    return frame


def _lines(path: Path) -> Iterator[str]:
    with (
        gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text,
    ):
        yield from text


def _shown(text: str) -> str:
    line = text.split("\n", 1)[0].rstrip("\r")
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "…")
