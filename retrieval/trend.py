"""How often each item was taken lately: what is in fashion at the moment of a request."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from data.schema import NO_ITEM, Histories, Mask, Rows, Scores

SECONDS_PER_DAY = 86_400
EVER = "taken ever"
HALF = 0.5
"""Added to counts before the logarithm, so that an item never taken has one."""
FASHIONS = 2
"""So many of the shortest windows bring candidates."""
REMEMBERED_DAYS = 4_096
"""Days on which it is remembered what was in fashion."""


@dataclass(frozen=True)
class Trend:
    """The moments at which items were taken, searched for how many fall in the days before a request.

    A window counts up to the end of the day on which a list is asked and nothing later, so one that is asked in
    the past of the log is not told what became fashionable afterwards. "Taken ever" is over the whole of the
    training part, like everything else that is fitted on it.

    Attributes:
        taken: (R,) int64, item row × `span` + day, rising; days since the first of the log.
        span: days in the log, and one.
        first_day: the first day of the log, since 1970.
        ever: (N,) float32 log(interactions + 1/2) over all time.
        windows_days: lengths of the windows.
    """

    taken: Rows
    span: int
    first_day: int
    ever: Scores
    windows_days: tuple[int, ...]
    _in_fashion: dict[tuple[int, int], Rows] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(cls, train: Histories, n_items: int, windows_days: tuple[int, ...]) -> "Trend":
        """Sorts the interactions of `train` by item and day; those without time count in `ever` alone."""
        ever = np.log(np.bincount(train.item_rows, minlength=n_items) + HALF).astype(np.float32)
        timed = np.zeros(0, dtype=bool) if train.timestamps is None else train.timestamps != Histories.NO_TIME
        if train.timestamps is None or not timed.any():
            return cls(np.zeros(0, dtype=np.int64), 1, 0, ever, ())
        days = train.timestamps[timed] // SECONDS_PER_DAY
        first, span = int(days.min()), int(days.max() - days.min()) + 2
        return cls(np.sort(train.item_rows[timed] * span + days - first), span, first, ever, windows_days)

    def grown(self, n_items: int) -> "Trend":
        """The same over a catalog of more items, which nobody has taken; nothing is counted again for it."""
        grown = replace(self, ever=self._with_untaken(self.ever, n_items))
        counts = {name: self._with_untaken(count, n_items) for name, count in self._counted_now.items()}
        grown.__dict__["_counted_now"] = counts  # where the cached property keeps it
        return grown

    @staticmethod
    def _with_untaken(counts: Scores, n_items: int) -> Scores:
        return np.pad(counts, (0, n_items - len(counts)), constant_values=np.log(np.float32(HALF)))

    @property
    def windows(self) -> tuple[str, ...]:
        """Names of the columns that count within days."""
        return tuple(f"taken in {days} days" for days in self.windows_days)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns."""
        return (*self.windows, EVER)

    def untaken(self, rows: Rows) -> Mask:
        """Of any shape, true where nobody has taken the item at that row: a cold item."""
        return np.asarray(self.ever[rows] < 0)  # log(1/2); that of one interaction is above 0

    def columns(self, rows: Rows, asked_at: Rows | None) -> dict[str, Scores]:
        """Name → (B, K) float32 log(count + 1/2) of the items at `rows` (B, K).

        Args:
            asked_at: (B,) Unix seconds, NO_TIME for the end of the log; None: the end of the log for all.
        """
        if asked_at is None:
            # As in service: every item is counted once, for all who will ask.
            return {**{name: count[rows] for name, count in self._counted_now.items()}, EVER: self.ever[rows]}
        end = self._end(asked_at, len(rows))
        until = np.searchsorted(self.taken, rows * self.span + end[:, None])
        columns = {}
        for name, days in zip(self.windows, self.windows_days, strict=True):
            start = np.maximum(end - days, 0)[:, None]
            count = until - np.searchsorted(self.taken, rows * self.span + start)
            columns[name] = np.log(count + HALF).astype(np.float32)
        return {**columns, EVER: self.ever[rows]}

    def most_taken(self, asked_at: Rows | None, users: int, count: int) -> Rows:
        """(B, W) the `count` items taken most in each of the two shortest windows, then NO_ITEM; distinct.

        Ties go to the item taken more often at all, then to the lower row. W is 0 in a log without time.

        Args:
            asked_at: as in `columns`.
            users: B.
        """
        windows = sorted(self.windows_days)[:FASHIONS]
        found = np.full((users, len(windows) * count), NO_ITEM, dtype=np.int64)
        if found.size:
            ends, place = np.unique(self._end(asked_at, users), return_inverse=True)
            for number, end in enumerate(ends.tolist()):
                rows = self._on_day(end, windows, count)
                found[place == number, : len(rows)] = rows
        return found

    @cached_property
    def _counted_now(self) -> dict[str, Scores]:
        """Name of each window → (N,) float32 log(count + 1/2) of all items at the end of the log."""
        days, rows = self._by_day
        counted = {}
        for name, window in zip(self.windows, self.windows_days, strict=True):
            inside = slice(*np.searchsorted(days, (self.span - window, self.span)))
            counted[name] = np.log(np.bincount(rows[inside], minlength=len(self.ever)) + HALF).astype(np.float32)
        return counted

    def _on_day(self, end: int, windows: list[int], count: int) -> Rows:
        """Rows of the items in fashion before the day `end`; the same for all who ask on one day."""
        if (end, count) not in self._in_fashion:
            if len(self._in_fashion) >= REMEMBERED_DAYS:
                self._in_fashion.clear()
            best = [self._best(end - days, end, count) for days in windows]
            self._in_fashion[end, count] = np.unique(np.concatenate(best))
        return self._in_fashion[end, count]

    def _best(self, start: int, end: int, count: int) -> Rows:
        """Rows of the `count` items taken most on the days from `start` to before `end`."""
        days, rows = self._by_day
        taken, times = np.unique(rows[slice(*np.searchsorted(days, (start, end)))], return_counts=True)
        return np.asarray(taken[np.lexsort((taken, -self.ever[taken], -times))[:count]])

    @cached_property
    def _by_day(self) -> tuple[Rows, Rows]:
        """(R,) days, rising, and the rows taken on them."""
        rows, days = self.taken // self.span, self.taken % self.span
        order = np.argsort(days, kind="stable")
        return days[order], rows[order]

    def _end(self, asked_at: Rows | None, users: int) -> Rows:
        """(B,) the day behind the one on which each user asks, counted from the first of the log."""
        if asked_at is None:
            return np.full(users, self.span)
        day = np.where(asked_at == Histories.NO_TIME, self.span, asked_at // SECONDS_PER_DAY - self.first_day + 1)
        return np.asarray(np.clip(day, 0, self.span))

    def save(self, folder: Path) -> None:
        """Writes the days at which each item was taken, and how often each was taken at all."""
        rows, days = self.taken // self.span, self.taken % self.span + self.first_day
        pl.DataFrame({"item_row": rows, "day": days}).write_parquet(folder / "taken.parquet")
        pl.DataFrame({"log_taken": self.ever}).write_parquet(folder / "taken_ever.parquet")

    @classmethod
    def load(cls, folder: Path, windows_days: tuple[int, ...]) -> "Trend":
        """Reads what `save` wrote."""
        ever = pl.read_parquet(folder / "taken_ever.parquet")["log_taken"].to_numpy()
        frame = pl.read_parquet(folder / "taken.parquet")
        days, rows = frame["day"].to_numpy(), frame["item_row"].to_numpy()
        if not len(days):
            return cls(np.zeros(0, dtype=np.int64), 1, 0, ever, ())
        first, span = int(days.min()), int(days.max() - days.min()) + 2
        return cls(rows * span + days - first, span, first, ever, windows_days)
