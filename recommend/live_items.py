"""What of a catalog has changed since its data set was prepared, as the journal and the last compaction tell it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.schema import ITEM_ID, TEXT, Catalog, Dataset, Rows
from data.vocabulary import Vocabulary
from index.base import VectorIndex
from index.changes import Change, ChangeKind
from retrieval.growth import ReadItems, grown
from retrieval.retriever import Retriever
from store.errors import CorruptArtifact

FOLDER = "catalog"
"""Of a compacted index: the changes folded into it."""
_ITEMS, _READ = "items.parquet", "read.safetensors"
_TABLE, _TEXT, _STAND_INS, _WEIGHTS = "items", "text", "stand_in_rows", "stand_in_weights"
_ROW = "item_row"


@dataclass(frozen=True)
class LiveItems:
    """Items that were added, changed or removed.

    Attributes:
        n_items: rows of the data set's catalog and those allotted since.
        items: item_row, then the columns of the catalog: the newest row of each item that was added or changed.
        read: those of them whose text was read anew.
        removed: (r,) rows that must not be recommended, rising.
    """

    n_items: int
    items: pl.DataFrame
    read: ReadItems
    removed: Rows

    @classmethod
    def none(cls, catalog: Catalog, width: int) -> Self:
        """Before the first change; `width` is that of text vectors."""
        rows, tables = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        read = ReadItems(rows, (), np.zeros((0, width), np.float32), rows.reshape(0, 0), tables)
        return cls(len(catalog), _numbered(catalog.items.clear(), rows), read, rows)

    def __bool__(self) -> bool:
        """Whether anything has changed."""
        return bool(len(self.items) or len(self.removed))

    def after(self, changes: Iterable[Change]) -> Self:
        """With more changes, in their order.

        Raises:
            CorruptArtifact: when a change lacks what it should carry.
        """
        frames, reads = [self.items], [self.read]
        removed = set(self.removed.tolist())
        n_items = self.n_items
        for change in changes:
            if change.kind is ChangeKind.REMOVE:
                removed.update(change.rows.tolist())
                continue
            items = _table_of(change)
            frames.append(_numbered(items, change.rows))
            if change.kind is ChangeKind.PUT:
                removed.difference_update(change.rows.tolist())
                reads.append(_read_of(change, items))
                n_items = max(n_items, int(change.rows.max(initial=-1)) + 1)
        items = pl.concat(frames).unique(_ROW, keep="last", maintain_order=True).sort(_ROW)
        return replace(
            self, n_items=n_items, items=items, read=_newest(reads), removed=np.array(sorted(removed), dtype=np.int64)
        )

    def row_of(self) -> Mapping[str, int]:
        """Item id → row, of the items that were added or changed."""
        return dict(zip(self.items[ITEM_ID].to_list(), self.items[_ROW].to_list(), strict=True))

    def at(self, rows: Rows) -> pl.DataFrame:
        """The newest table rows of items that were added or changed, in the order of `rows`."""
        places = np.searchsorted(self.items[_ROW].to_numpy(), rows)
        return self.items[places].drop(_ROW)

    @property
    def changed_rows(self) -> Rows:
        """(L,) rows of `items`."""
        return self.items[_ROW].to_numpy().astype(np.int64)

    def over_dataset(self, dataset: Dataset) -> Dataset:
        """The data set with the catalog as it is now; removed items keep their rows, for the histories they are in."""
        items = dataset.catalog.items
        base = _numbered(items, np.arange(len(items)))
        now = pl.concat([base, self.items]).unique(_ROW, keep="last", maintain_order=True).sort(_ROW).drop(_ROW)
        return replace(dataset, catalog=Catalog(now, Vocabulary(now[ITEM_ID].to_list())))

    def over_retriever(self, retriever: Retriever, index: VectorIndex) -> Retriever:
        """The retriever that was fitted on the data set, over the catalog as it is now."""
        return grown(retriever, self.read, n_items=self.n_items, removed=self.removed, index=index)

    def save(self, folder: Path) -> None:
        """Writes the changes into the folder of the index into which they were folded."""
        target = folder / FOLDER
        target.mkdir()
        self.items.write_parquet(target / _ITEMS)
        counted = {"n_items": np.array([self.n_items]), "removed": self.removed, "rows": self.read.rows}
        save_file({**counted, **_arrays(self.read)}, target / _READ)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote into the folder of an index; None where nothing was folded into it.

        Raises:
            CorruptArtifact: when it cannot be read.
        """
        source = folder / FOLDER
        if not source.is_dir():
            return None
        try:
            items, arrays = pl.read_parquet(source / _ITEMS), load_file(source / _READ)
            texts = items.filter(pl.col(_ROW).is_in(pl.Series(arrays["rows"]).implode()))[TEXT].to_list()
            read = ReadItems(arrays["rows"], texts, arrays[_TEXT], arrays[_STAND_INS], arrays[_WEIGHTS])
            return cls(int(arrays["n_items"][0]), items, read, arrays["removed"])
        except (OSError, KeyError, pl.exceptions.PolarsError, SafetensorError) as error:
            raise CorruptArtifact(
                f"{source} cannot be read ({error}): go back to an earlier release with 'python cli.py index rollback'"
            ) from error


def beside(items: pl.DataFrame, read: ReadItems | None = None) -> dict[str, npt.NDArray[Any]]:
    """What a change carries for the catalog: rows of its table, and for a PUT what was read of their texts."""
    buffer = BytesIO()
    items.write_parquet(buffer)
    table = {_TABLE: np.frombuffer(buffer.getvalue(), dtype=np.uint8)}
    return table if read is None else {**table, **_arrays(read)}


def _arrays(read: ReadItems) -> dict[str, npt.NDArray[Any]]:
    return {
        _TEXT: np.ascontiguousarray(read.text),
        _STAND_INS: np.ascontiguousarray(read.stand_in_rows),
        _WEIGHTS: np.ascontiguousarray(read.stand_in_weights),
    }


def _table_of(change: Change) -> pl.DataFrame:
    try:
        return pl.read_parquet(BytesIO(change.beside[_TABLE].tobytes()))
    except (KeyError, pl.exceptions.PolarsError) as error:
        raise _lacking(error) from error


def _read_of(change: Change, items: pl.DataFrame) -> ReadItems:
    try:
        arrays = [change.beside[name] for name in (_TEXT, _STAND_INS, _WEIGHTS)]
    except KeyError as error:
        raise _lacking(error) from error
    return ReadItems(change.rows, items[TEXT].to_list(), *arrays)


def _lacking(error: Exception) -> CorruptArtifact:
    return CorruptArtifact(
        f"a change of the journal says nothing of the items that it changes ({error}): it was not made by "
        "'python cli.py index'; go back to an earlier release with 'python cli.py index rollback'"
    )


def _newest(reads: list[ReadItems]) -> ReadItems:
    """Of several readings of an item the last, by rising rows."""
    reads = [read for read in reads if len(read.rows)] or reads[:1]
    rows = np.concatenate([read.rows for read in reads])
    # The first of the reversed list is the last.
    kept_rows, from_end = np.unique(rows[::-1], return_index=True)
    places = len(rows) - 1 - from_end
    texts = [text for read in reads for text in read.texts]
    wide = max(read.stand_in_rows.shape[1] for read in reads)
    speakers = [_wide(read.stand_in_rows, wide, -1) for read in reads]
    weights = [_wide(read.stand_in_weights, wide, 0) for read in reads]
    return ReadItems(
        kept_rows,
        [texts[place] for place in places.tolist()],
        np.concatenate([read.text for read in reads])[places],
        np.concatenate(speakers)[places],
        np.concatenate(weights)[places],
    )


def _wide(table: npt.NDArray[Any], width: int, filling: float) -> npt.NDArray[Any]:
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=filling)


def _numbered(items: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    return items.select(pl.Series(_ROW, rows, dtype=pl.Int64), pl.all())
