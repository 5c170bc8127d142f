"""The vectors that an index was given since its base was built: few, and searched exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from data.schema import NO_ITEM, Mask, Rows, Scores

T = TypeVar("T", bound=np.generic)


class Growing(Generic[T]):
    """An array that is appended to in amortised constant time; what was handed out before never changes."""

    def __init__(self, first: npt.NDArray[T]) -> None:
        self._room, self._length = first, len(first)

    def appended(self, values: npt.NDArray[T]) -> npt.NDArray[T]:
        """All values so far, these last."""
        wanted = self._length + len(values)
        if wanted > len(self._room):
            room = np.empty((max(wanted, 2 * self._length), *self._room.shape[1:]), dtype=self._room.dtype)
            room[: self._length] = self._room[: self._length]
            self._room = room
        # Behind the end of every array handed out so far, so that nobody who is reading one can see it.
        self._room[self._length : wanted] = values
        self._length = wanted
        return self._room[:wanted]


@dataclass(frozen=True)
class Delta:
    """Vectors by slot; several slots may have had one row after another, at most one of them is alive.

    Attributes:
        vectors: (n, D) float32.
        rows: (n,) int64, the item row of each slot.
        alive: (n,) bool, false where the row was removed or got another vector.
    """

    vectors: Scores
    rows: Rows
    alive: Mask

    def __len__(self) -> int:
        return len(self.rows)

    def search(
        self, queries: Scores, k: int, *, least: Scores, exclude: Sequence[Rows] | None, allowed: Mask | None
    ) -> list[tuple[Scores, Rows]]:
        """For each query the scores and rows of its best k slots at most, unordered, ties at the end all of them.

        Args:
            least: (B,) scores below which nothing is wanted.
            exclude, allowed: see VectorIndex.search.
        """
        open_slots = self.alive if allowed is None else self.alive & allows(allowed, self.rows)
        scores = np.where(open_slots, queries @ self.vectors.T, np.float32(-np.inf))  # (B, n)
        found = []
        for place, line in enumerate(scores):
            if exclude is not None and len(exclude[place]):
                line[np.isin(self.rows, exclude[place])] = -np.inf
            enough = least[place]
            if len(line) > k:
                enough = max(enough, np.partition(line, len(line) - k)[len(line) - k])
            slots = np.flatnonzero((line >= enough) & (line > -np.inf))
            found.append((line[slots], self.rows[slots]))
        return found


def allows(allowed: Mask, rows: Rows) -> Mask:
    """(n,) whether a mask by row allows each of `rows`; rows beyond its end it does not.

    Raises:
        ValueError: when it is no (N,) array of bool.
    """
    if allowed.ndim != 1 or allowed.dtype != np.bool_:
        raise ValueError(f"allowed is {allowed.dtype} of shape {allowed.shape}, it must be (N,) bool")
    inside = rows < len(allowed)
    return np.asarray(inside & allowed[np.where(inside, rows, 0)]) if len(allowed) else np.zeros(len(rows), np.bool_)


def merged(scores: Scores, rows: Rows, more: list[tuple[Scores, Rows]]) -> tuple[Scores, Rows]:
    """(B, k) best of lists and of what else was found for each query, best first, ties by lower row."""
    scores, rows, k = scores.copy(), rows.copy(), scores.shape[1]
    for place, (more_scores, more_rows) in enumerate(more):
        if not len(more_rows):
            continue
        there = rows[place] != NO_ITEM
        both_scores = np.concatenate([scores[place][there], more_scores])
        both_rows = np.concatenate([rows[place][there], more_rows])
        order = np.lexsort((both_rows, -both_scores))[:k]
        scores[place, : len(order)], rows[place, : len(order)] = both_scores[order], both_rows[order]
    return scores, rows
