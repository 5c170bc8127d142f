"""Files as they are found: CSV, TSV, Parquet and JSON lines, with the numbers of their rows."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data.loose_text import read_loosely
from store.errors import BadInput

ROW = "\0row"
"""The column of a Table that numbers its rows as a person counts them in the file."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_CATEGORIES = (pl.Categorical, pl.Enum)
_ALL = (*_SEPARATORS, ".parquet", *_JSON_LINES)


@dataclass(frozen=True, slots=True)
class Table:
    """A file's columns, unchanged but for lists, which become `|`-separated text.

    Attributes:
        path: where it was read.
        frame: the rows, with ROW beside them; all text when read from CSV or TSV, whose header is row 1.
        mixed: column → kinds of value in it and one row of each, where a JSON column has several kinds.
    """

    path: Path
    frame: pl.DataFrame
    mixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns of the file."""
        return [column for column in self.frame.columns if column != ROW]

    def rows(self, mask: pl.Series) -> list[int]:
        """The numbers of the rows where `mask` is true."""
        return self.frame[ROW].filter(mask).to_list()


def read_table(path: Path) -> Table:
    """Reads .csv, .tsv, .parquet, .jsonl, .ndjson or .json (one object a line), text also as .gz.

    Raises:
        BadInput: when there is no such file, or it cannot be read as what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: {'is a folder, not a file' if path.is_dir() else 'there is no such file'}")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    try:
        if kind in _SEPARATORS:
            return _read_text(path, _SEPARATORS[kind])
        if kind == ".parquet":
            frame = pl.read_parquet(path, hive_partitioning=False)
            return Table(path, _lists_joined(frame).with_row_index(ROW, offset=1))
        if kind in _JSON_LINES:
            return _read_json_lines(path)
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{path}: cannot be read as {kind[1:]}: {reason}") from error
    raise BadInput(f"{path}: unknown kind of file; expected {', '.join(_ALL)} (text also as .gz)")


def _read_text(path: Path, separator: str) -> Table:
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema=False)
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame()
    except pl.exceptions.ComputeError as error:
        # Slower, and so only where it is needed.
        try:
            frame = read_loosely(path, separator)
        except UnicodeDecodeError:
            raise error from None
    if not frame.width:
        return Table(path, pl.DataFrame(schema={ROW: pl.UInt32}))
    # A blank line is no row, but it counts in the numbering.
    blank = pl.all_horizontal(pl.exclude(ROW).is_null())
    return Table(path, frame.with_row_index(ROW, offset=2).filter(~blank))


def _lists_joined(frame: pl.DataFrame) -> pl.DataFrame:
    schema = frame.schema
    joined = [
        pl.col(name).cast(pl.List(pl.String)).list.join("|", ignore_nulls=True)
        for name, kind in schema.items()
        if isinstance(kind, pl.List | pl.Array) and not kind.inner.is_nested()
    ]
    texts = [pl.col(name).cast(pl.String) for name, kind in schema.items() if isinstance(kind, _CATEGORIES)]
    return frame.with_columns(joined + texts)


def _read_json_lines(path: Path) -> Table:
    columns: dict[str, list[Any]] = {}
    rows: list[int] = []
    for row, record in _records(path):
        for name in [name for name in record if name not in columns]:
            columns[name] = [None] * len(rows)
        for name, values in columns.items():
            values.append(_plain(record.get(name)))
        rows.append(row)
    mixed: dict[str, str] = {}
    series = [pl.Series(ROW, rows, dtype=pl.UInt32)]
    for name, values in columns.items():
        kinds = Counter(type(value) for value in values if value is not None)
        if len(kinds) > 1 and kinds.keys() != {int, float}:
            mixed[name] = _kinds_told(values, rows)
        series.append(_series(name, values, set(kinds)))
    return Table(path, pl.DataFrame(series), mixed)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}: row {row} is no JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise BadInput(f"{path}: row {row} is a {kind}; expected one JSON object a line")
            yield row, record


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(str(entry) for entry in _flat(value) if entry is not None)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return value


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _series(name: str, values: list[Any], kinds: set[type]) -> pl.Series:
    plain = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}
    if kinds == {int, float}:
        return pl.Series(name, values, dtype=pl.Float64, strict=False)
    if len(kinds) == 1:
        try:
            return pl.Series(name, values, dtype=plain[next(iter(kinds))])
        except (OverflowError, TypeError):
            pass  # whole numbers beyond 64 bits stay as they are written
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _kinds_told(values: list[Any], rows: list[int]) -> str:
    first: dict[str, int] = {}
    words = {bool: "truth values", int: "numbers", float: "numbers", str: "text"}
    for value, row in zip(values, rows, strict=True):
        if value is not None:
            first.setdefault(words[type(value)], row)
    return " and ".join(f"{word} (as in row {row})" for word, row in first.items())
