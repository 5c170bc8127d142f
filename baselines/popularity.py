"""The same list for everyone: what was taken most, ever or lately."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from baselines.base import ScoresAll, item_counts, popularity_order
from data.schema import Histories, Rows, Scores

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Popularity(ScoresAll):
    """Items by the number of their interactions.

    Attributes:
        counts: (N,) int64.
        order: (N,) item rows, most popular first.
    """

    counts: Rows
    order: Rows
    name: ClassVar[str] = "popularity"

    @classmethod
    def fit(cls, train: Histories, n_items: int) -> Self:
        """Counts the training log."""
        counts = item_counts(train, n_items)
        return cls(counts, popularity_order(counts))

    def _score(self, histories: Histories) -> Scores:
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))


@dataclass(frozen=True)
class RecentPopularity(ScoresAll):
    """Items by the number of their latest interactions; equal ones by those of all time.

    Attributes:
        counts: (N,) int64, within the window.
        order: (N,) item rows, most popular first.
        window: in words, what was counted.
    """

    counts: Rows
    order: Rows
    window: str
    name: ClassVar[str] = "recent popularity"

    @classmethod
    def fit(cls, train: Histories, n_items: int, *, days: float = 30.0, share_without_time: float = 0.1) -> Self:
        """Counts the end of the training log.

        Args:
            train: the training log.
            n_items: N.
            days: where the log has times, the interactions of so many days before its last one.
            share_without_time: where it has none, the newest part of every history, at least one item:
                without times, users cannot be compared, and the end of each is all that is known.
        """
        if train.timestamps is not None and (known := train.timestamps != Histories.NO_TIME).any():
            cut = train.timestamps[known].max() - days * SECONDS_PER_DAY
            recent, window = known & (train.timestamps > cut), f"last {days:g} days"
        else:
            left = np.repeat(train.offsets[1:], train.lengths) - np.arange(len(train.item_rows))
            kept = np.maximum(1, np.floor(share_without_time * train.lengths))
            recent = left <= np.repeat(kept, train.lengths)
            window = f"newest {share_without_time:.0%} of each history (the log has no times)"
        counts = np.bincount(train.item_rows[recent], minlength=n_items).astype(np.int64)
        order = np.lexsort((-item_counts(train, n_items), -counts)).astype(np.int64)
        return cls(counts, order, window)

    def _score(self, histories: Histories) -> Scores:
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))
