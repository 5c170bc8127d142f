"""What all kinds of index share: how a search is checked, grouped by how much it excludes, and cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from data.schema import Mask, Rows, Scores
from index.checks import check_queries
from index.lists import Allowed, nothing, of_length, without_excluded


class GroupedIndex(ABC):
    """A VectorIndex but for its vectors; subclasses say how the nearest rows are found.

    Args:
        count: N, how many vectors there are.
        dimension: D, the length of each.
    """

    def __init__(self, count: int, dimension: int) -> None:
        self._count, self._dimension = count, dimension

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search."""
        check_queries(self, vectors, k, exclude)
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        part = None if allowed is None else Allowed.of(allowed, self._count)
        if exclude is None or not any(map(len, exclude)):
            return self._search_alike(queries, k, None, longest=0, allowed=part)
        lengths = np.array([len(rows) for rows in exclude], dtype=np.int64)
        if len(queries) == 1:
            return self._search_alike(queries, k, exclude, longest=int(lengths[0]), allowed=part)
        scores, rows = nothing(len(queries), k)
        # One long history must not make every query of its batch fetch as much: alike lengths go together.
        groups = np.ceil(np.log2(k + lengths)).astype(np.int64)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            excluded = [exclude[int(place)] for place in places]
            longest = int(lengths[places].max())
            scores[places], rows[places] = self._search_alike(
                queries[places], k, excluded, longest=longest, allowed=part
            )
        return scores, rows

    @abstractmethod
    def _nearest(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        """(B, fetch) scores and rows, falling, ties by lower row; `fetch` is at most what is allowed.

        Every place is filled: what excludes rows afterwards counts on it.
        """

    def _search_alike(
        self, queries: Scores, k: int, exclude: Sequence[Rows] | None, *, longest: int, allowed: Allowed | None
    ) -> tuple[Scores, Rows]:
        """Search where no list to exclude is longer than `longest`; fetches as many rows more."""
        fetch = min(k + longest, self._count if allowed is None else allowed.count)
        if fetch == 0 or not len(queries):
            return nothing(len(queries), k)
        scores, rows = self._nearest(queries, fetch, allowed)
        if exclude is not None and longest:
            scores, rows = without_excluded(scores, rows, exclude, size=self._count)
        return of_length(scores, rows, k)
