"""Vectors by row, in memory or mapped from a file, in the precision that they are kept in."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from data.schema import Rows, Scores
from store.errors import CorruptArtifact


class Storage(StrEnum):
    """Precision of vectors that are kept."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def bytes(self) -> int:
        """Bytes of one dimension."""
        return 4 if self is Storage.FLOAT32 else 2


DTYPES: dict[Storage, npt.DTypeLike] = {
    Storage.FLOAT32: np.float32,
    Storage.FLOAT16: np.float16,
    Storage.BFLOAT16: np.uint16,  # NumPy has none; these are the upper halves of float32
}


class VectorsByRow(Protocol):
    """Whatever gives vectors back by row."""

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> Scores:
        """(n, D) float32."""
        ...


class StoredVectors:
    """(N, D) vectors as an array of their storage, which may be a mapped file.

    Args:
        values: (N, D) of DTYPES[storage].
    """

    def __init__(self, values: npt.NDArray[Any], storage: Storage) -> None:
        self.values, self.storage = values, storage

    @classmethod
    def of(cls, vectors: Scores, storage: Storage) -> Self:
        """Vectors (N, D) float32, rounded to the storage."""
        return cls(rounded(vectors, storage), storage)

    @classmethod
    def mapped(cls, path: Path, storage: Storage, *, shape: tuple[int, int]) -> Self:
        """A file that `write` wrote, mapped: pages are read when they are first needed.

        Raises:
            CorruptArtifact: when the file is not one of that shape.
        """
        dtype = np.dtype(DTYPES[storage])
        expected = shape[0] * shape[1] * dtype.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise CorruptArtifact(
                f"{path} has {found:,} bytes, {shape[0]:,} vectors of {shape[1]} × {storage} have {expected:,}: "
                "run 'python cli.py build-index'"
            )
        # A plain array over the map: np.memmap itself takes longer to index than the rows to read.
        return cls(np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape)), storage)

    def write(self, path: Path) -> None:
        """Writes the values one after another, without a header.

        Raises:
            OSError: when the disk refuses the write.
        """
        with path.open("wb") as file:
            file.write(np.ascontiguousarray(self.values).data)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Rows) -> Scores:
        """(n, D) float32."""
        return widened(self.values[rows], self.storage)


class DecodedVectors:
    """Vectors that a FAISS index gives back from its own codes.

    Args:
        index: kept alive; lists get a map from rows to places when a vector is first asked for.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self._needs_map = hasattr(index, "make_direct_map")

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def take(self, rows: Rows) -> Scores:
        """(n, D) float32."""
        if self._needs_map:
            self._index.make_direct_map(True)
            self._needs_map = False
        return np.asarray(self._index.reconstruct_batch(np.ascontiguousarray(rows)), dtype=np.float32)


def rounded(vectors: Scores, storage: Storage) -> npt.NDArray[Any]:
    """Float32 vectors in their storage, to the nearest value, ties to even."""
    if storage is Storage.BFLOAT16:
        bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(vectors, dtype=DTYPES[storage])


def widened(values: npt.NDArray[Any], storage: Storage) -> Scores:
    """Stored values as float32."""
    if storage is Storage.BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, dtype=np.float32)
