"""From a score for every item to ranked candidates: exact, deterministic, bounded in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data.schema import NO_ITEM, Candidates, Histories, Rows, Scores

BATCH_BYTES = 32 * 2**20
"""Working memory of one batch of users, all temporary arrays together; larger batches leave the cache."""

BYTES_PER_SCORE = 24  # a float32 score, its copy as bits, its int64 key, and what made the score

_LOW_BITS = np.int64(2**32 - 1)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A baseline that was not fitted, and why; stands in the report in its place."""

    name: str
    reason: str


def top_candidates(
    scores: Scores,
    histories: Histories,
    depth: int,
    *,
    name: str,
    exclude_known: bool = True,
    tie_order: Rows | None = None,
) -> Candidates:
    """The best items of a dense score matrix.

    Args:
        scores: (B, N) float32; -inf marks an item that must not be returned. Overwritten where known items
            are excluded.
        histories: B lists.
        depth: K.
        name: the source that the scores are recorded under.
        exclude_known: leave out the items of each history.
        tie_order: (N,) all item rows; of equal scores the one that stands earlier here goes first.
            None: the lower row.

    Raises:
        ValueError: when a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{name} gives a score that is NaN")
    if exclude_known:
        scores[histories.list_of_row, histories.item_rows] = -np.inf
    kept = min(depth, scores.shape[1])
    place_of = None if tie_order is None else np.argsort(tie_order)
    keys = _sortable(scores, place_of)
    keys.partition(scores.shape[1] - kept, axis=1)
    keys = np.sort(keys[:, -kept:], axis=1)[:, ::-1]  # (B, kept), best first
    places = _LOW_BITS - (keys & _LOW_BITS)
    rows = places if tie_order is None else tie_order[places]
    best = np.take_along_axis(scores, rows, 1)
    rows = np.where(best == -np.inf, NO_ITEM, rows)
    missing = ((0, 0), (0, depth - kept))
    rows = np.pad(rows, missing, constant_values=NO_ITEM)
    best = np.pad(best, missing, constant_values=-np.inf)
    return Candidates(rows, best, {name: best})


def batched_candidates(
    score: Callable[[Histories], Scores],
    histories: Histories,
    depth: int,
    *,
    n_items: int,
    name: str,
    exclude_known: bool = True,
    tie_order: Rows | None = None,
) -> Candidates:
    """`top_candidates` of `score(histories)`, a batch of users at a time.

    Args:
        score: histories of b users → (b, N) float32, a new array at each call.
        histories: B lists.
        depth: K.
        n_items: N.
        name: as in top_candidates, like the rest.
        exclude_known: likewise.
        tie_order: likewise.
    """
    users = max(1, BATCH_BYTES // (BYTES_PER_SCORE * max(n_items, 1)))
    rows = np.full((len(histories), depth), NO_ITEM, dtype=np.int64)
    best = np.full((len(histories), depth), -np.inf, dtype=np.float32)
    for start in range(0, len(histories), users):
        places = np.arange(start, min(start + users, len(histories)), dtype=np.int64)
        batch = histories.take(places)
        found = top_candidates(score(batch), batch, depth, name=name, exclude_known=exclude_known, tie_order=tie_order)
        rows[places], best[places] = found.item_rows, found.score
    return Candidates(rows, best, {name: best})


class ScoresAll(ABC):
    """A baseline that scores every item for every user.

    Attributes:
        name: in reports.
        order: (N,) item rows; of equal scores the one that stands earlier here goes first.
    """

    name: ClassVar[str]
    order: Rows

    def candidates(self, histories: Histories, depth: int, *, exclude_known: bool = True) -> Candidates:
        """See CandidateSource.candidates."""
        return batched_candidates(
            self._score,
            histories,
            depth,
            n_items=len(self.order),
            name=self.name,
            exclude_known=exclude_known,
            tie_order=self.order,
        )

    @abstractmethod
    def _score(self, histories: Histories) -> Scores:
        """(B, N) float32, a new array at each call."""


def item_counts(histories: Histories, n_items: int) -> Rows:
    """(N,) int64, how often each item was taken."""
    return np.bincount(histories.item_rows, minlength=n_items).astype(np.int64)


def popularity_order(counts: npt.NDArray[np.number]) -> Rows:
    """(N,) item rows, most frequent first, equal ones by lower row."""
    return np.argsort(-counts, kind="stable").astype(np.int64)


def user_item_matrix(histories: Histories, n_items: int) -> sp.csr_matrix:
    """(B, N) float32, 1 where the user took the item, however often."""
    ones = np.ones(len(histories.item_rows), dtype=np.float32)
    shape = (len(histories), n_items)
    matrix = sp.csr_matrix((ones, (histories.list_of_row, histories.item_rows)), shape=shape)
    matrix.data[:] = 1  # the constructor has summed repeated pairs
    return matrix


def decayed_matrix(histories: Histories, n_items: int, *, window: int, decay: float) -> sp.csr_matrix:
    """(B, N) float32: decay ** j for the item j steps back among the last `window`; repeats add up."""
    recent = histories.last(window)  # (B, window)
    present = recent != NO_ITEM
    users, steps = np.nonzero(present)
    values = (decay**steps).astype(np.float32)
    return sp.csr_matrix((values, (users, recent[present])), shape=(len(histories), n_items))


def _sortable(scores: Scores, place_of: Rows | None) -> npt.NDArray[np.int64]:
    """(B, N) int64 keys, all different within a user, that rise with the score, then fall with the place.

    np.partition on them is exact in ties and 10 × faster than on float32 scores that are mostly zero.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0.0 equal to 0.0
    # The bits of floats order like integers, those of negative floats backwards: flip all but the sign.
    bits ^= (bits >> 31) & np.int32(2**31 - 1)
    keys = bits.astype(np.int64)
    keys <<= 32
    places = np.arange(scores.shape[1], dtype=np.int64) if place_of is None else place_of
    keys += _LOW_BITS - places
    return keys
