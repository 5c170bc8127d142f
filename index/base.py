"""Vectors in, rows out: what every vector index promises."""

from collections.abc import Sequence
from typing import Protocol

from data.schema import Mask, Rows, Scores


class VectorIndex(Protocol):
    """Item vectors by row, searched by inner product; knows neither texts nor models.

    A vector may be zero, as that of an item whose text lies at the mean of all texts and of which nothing has been
    learnt: it scores 0 with every query. None is NaN or infinite: those are refused when an index is built or changed.
    """

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        ...

    def __len__(self) -> int: ...

    def vectors(self, rows: Rows) -> Scores:
        """(n, D) float32, the vectors stored at `rows`, as scores are computed from them.

        Raises:
            IndexError: when a row is not in the index.
        """
        ...

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """The k rows of largest inner product for each query, best first, ties by lower row.

        An approximate index may miss some of the best rows, but it returns k whenever k are there that are
        allowed and not excluded, however few those are, and every score is the inner product with what is stored.

        Args:
            vectors: (B, D) float32 queries.
            k: how many rows to return for each query, at least 1.
            exclude: B arrays of rows that must not be returned; rows outside the index are ignored.
            allowed: (N,) bool by row: the rows that may be returned to any of the queries; rows beyond its end
                may not. None: all.

        Returns:
            Scores (B, k) float32 and rows (B, k) int64. A query that has fewer than k rows left gets
            all of them, then -inf and NO_ITEM; the shape is (B, k) even where k exceeds the index.

        Raises:
            Mismatch: when the vectors have another dimension than the index.
            ValueError: when k < 1, a vector is not finite, `exclude` has not B entries, or `allowed` is no
                (N,) array of bool.
        """
        ...
