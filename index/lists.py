"""Ranked lists of rows: exact ones from vectors, and what every index does to its lists before they leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.schema import NO_ITEM, Mask, Rows, Scores
from index.layout import FAISS
from index.stored_vectors import VectorsByRow

EXACT_CHUNK = 65_536
"""Vectors scored at once."""


@dataclass(frozen=True)
class Allowed:
    """The rows that a filter leaves.

    Attributes:
        mask: (N,) for an index of N vectors.
        count: how many are true.
    """

    mask: Mask
    count: int

    @classmethod
    def of(cls, mask: Mask, size: int) -> "Allowed | None":
        """A caller's mask for an index of `size` vectors; None where it leaves all.

        Raises:
            ValueError: when it is no (N,) array of bool.
        """
        if mask.ndim != 1 or mask.dtype != np.bool_:
            raise ValueError(f"allowed is {mask.dtype} of shape {mask.shape}, it must be (N,) bool")
        if len(mask) != size:
            mask = np.pad(mask[:size], (0, max(0, size - len(mask))))
        count = int(np.count_nonzero(mask))
        return None if count == size else cls(mask, count)

    @cached_property
    def rows(self) -> Rows:
        """(count,) int64, rising."""
        return np.flatnonzero(self.mask)

    @cached_property
    def selector(self) -> Any:
        """The same for FAISS."""
        return FAISS.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))


def exact_search(stored: VectorsByRow, queries: Scores, k: int, *, rows: Rows | None = None) -> tuple[Scores, Rows]:
    """The k best of the stored vectors, or of those at `rows` (rising), by inner product, ties by lower row.

    Returns:
        (B, k) scores and rows, falling; -inf and NO_ITEM where there are fewer.
    """
    size = len(stored) if rows is None else len(rows)
    best_scores, best_rows = nothing(len(queries), k)
    for start in range(0, size, EXACT_CHUNK):
        end = min(start + EXACT_CHUNK, size)
        part = np.arange(start, end) if rows is None else rows[start:end]
        scores = queries @ stored.take(part).T  # (B, chunk)
        for place, line in enumerate(scores):
            better = np.flatnonzero(line > best_scores[place, -1])
            if len(better) > k:
                kth = np.partition(line[better], len(better) - k)[len(better) - k]
                better = better[line[better] >= kth]
            found = np.concatenate([best_scores[place], line[better]])
            their = np.concatenate([best_rows[place], part[better]])
            # Stable: earlier chunks hold lower rows, and a chunk's own are rising.
            order = np.argsort(-found, kind="stable")[:k]
            best_scores[place], best_rows[place] = found[order], their[order]
    return best_scores, best_rows


def nothing(queries: int, k: int) -> tuple[Scores, Rows]:
    """Lists without an item."""
    return np.full((queries, k), -np.inf, dtype=np.float32), np.full((queries, k), NO_ITEM, dtype=np.int64)


def in_order(scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
    """Lists whose scores fall already, with equal ones by lower row."""
    if not (scores[:, 1:] == scores[:, :-1]).any():
        return scores, rows
    order = np.lexsort((rows, -scores), axis=-1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def without_excluded(scores: Scores, rows: Rows, exclude: Sequence[Rows], *, size: int) -> tuple[Scores, Rows]:
    """The same lists with excluded rows replaced by NO_ITEM and moved behind all others."""
    if len(exclude) == 1:
        dropped = np.isin(rows, exclude[0])
    else:
        lists = np.repeat(np.arange(len(exclude), dtype=np.int64), [len(known) for known in exclude])
        known = np.concatenate(exclude)
        inside = (known >= 0) & (known < size)
        dropped = np.isin(rows + np.arange(len(rows))[:, None] * size, (known + lists * size)[inside])
    order = np.argsort(dropped, axis=1, kind="stable")
    scores = np.where(dropped, np.float32(-np.inf), scores)
    rows = np.where(dropped, NO_ITEM, rows)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def of_length(scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
    """The first k places, filled up with -inf and NO_ITEM."""
    width = scores.shape[1]
    if width >= k:
        return scores[:, :k], rows[:, :k]
    filled_scores, filled_rows = nothing(len(scores), k)
    filled_scores[:, :width], filled_rows[:, :width] = scores, rows
    return filled_scores, filled_rows
