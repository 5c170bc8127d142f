"""Vectors in, rows out: what every vector index promises."""

from collections.abc import Sequence
from typing import Protocol

from data.schema import Rows, Scores


class VectorIndex(Protocol):
    """Item vectors by row, searched by inner product; knows neither texts nor models."""

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        ...

    def __len__(self) -> int: ...

    def search(self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None) -> tuple[Scores, Rows]:
        """The k rows of largest inner product for each query, best first, ties by lower row.

        Args:
            vectors: (B, D) float32 queries.
            k: how many rows to return for each query, at least 1.
            exclude: B arrays of rows that must not be returned; rows outside the index are ignored.

        Returns:
            Scores (B, k) float32 and rows (B, k) int64. A query that has fewer than k rows left gets
            all of them, then -inf and NO_ITEM; the shape is (B, k) even where k exceeds the index.

        Raises:
            Mismatch: when the vectors have another dimension than the index.
            ValueError: when k < 1, a vector is not finite, or `exclude` has not B entries.
        """
        ...
