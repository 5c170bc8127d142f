"""Training examples: every place of every history asks for the item that came next."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.schema import NO_ITEM, Histories, Rows, Scores, Words


class Examples(Protocol):
    """What a user tower learns from; a position is one place of a history with the item that followed."""

    @property
    def targets(self) -> Rows:
        """(P,) the items that one pass over all examples asks for."""
        ...

    @property
    def users(self) -> Rows:
        """(n,) whose history each example is of: its place in the training histories."""
        ...

    def batches(self, positions: int, rng: np.random.Generator) -> list[Rows]:
        """All examples in a random order, as lists of example numbers that ask for about `positions` items."""
        ...

    def batch(self, chosen: Rows) -> tuple[Tensor, Tensor]:
        """Inputs of the tower's `vectors_at`, and the item wanted at each place, NO_ITEM where none is."""
        ...


@dataclass(frozen=True)
class Positions:
    """One example a position: (n, H) int32 items before it, most recent first, and (n,) int64 the next item."""

    context: np.ndarray
    target: Rows
    users: Rows

    @classmethod
    def of(cls, train: Histories, history_items: int, *, last: int | None = None) -> "Positions":
        """Every place of every list but the first, or the `last` ones of these."""
        number = np.arange(len(train.item_rows))
        place = number - np.repeat(train.offsets[:-1], train.lengths)
        behind = np.repeat(train.offsets[1:], train.lengths) - number  # 1 at the end of a list
        entries = np.nonzero((place >= 1) & (True if last is None else behind <= last))[0]
        context = np.full((len(entries), history_items), NO_ITEM, dtype=np.int32)
        for step in range(1, history_items + 1):
            inside = place[entries] >= step
            context[inside, step - 1] = train.item_rows[entries[inside] - step]
        return cls(context, train.item_rows[entries], train.list_of_row[entries])

    def __len__(self) -> int:
        return len(self.target)

    @property
    def targets(self) -> Rows:
        """See Examples."""
        return self.target

    def batches(self, positions: int, rng: np.random.Generator) -> list[Rows]:
        """See Examples."""
        return np.split(rng.permutation(len(self)), range(positions, len(self), positions))

    def batch(self, chosen: Rows) -> tuple[Tensor, Tensor]:
        """(b, H) items before, most recent first, and (b,) next items."""
        return torch.from_numpy(self.context[chosen].astype(np.int64)), torch.from_numpy(self.target[chosen])


@dataclass(frozen=True)
class Windows:
    """One example a stretch of a history: all of its places are asked at once, each knowing what came before.

    Attributes:
        item_rows: of all lists, one behind the other.
        start, end: (n,) the stretch `item_rows[start:end]` of at most H + 1 items; neighbours share one item,
            so that every place but the first of a list is asked for exactly once.
        users: (n,) see Examples.
    """

    item_rows: Rows
    start: Rows
    end: Rows
    users: Rows

    @classmethod
    def of(cls, train: Histories, history_items: int) -> "Windows":
        """Cut from the end, so that the last window, the one most like a request, is long."""
        count = np.maximum(-(-(train.lengths - 1) // history_items), 0)
        of_list = np.repeat(np.arange(len(train)), count)
        step = np.arange(len(of_list)) - np.repeat(np.cumsum(count) - count, count)
        end = train.offsets[1:][of_list] - step * history_items
        start = np.maximum(end - history_items - 1, train.offsets[:-1][of_list])
        return cls(train.item_rows, start, end, of_list)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def targets(self) -> Rows:
        """See Examples."""
        length = self.end - self.start - 1
        first = np.repeat(self.start + 1 - (np.cumsum(length) - length), length)
        return self.item_rows[first + np.arange(len(first))]

    def batches(self, positions: int, rng: np.random.Generator) -> list[Rows]:
        """Windows of like length together, so that little is padded; lengths within a factor of 1.2 mix."""
        length = self.end - self.start - 1
        order = np.argsort(np.log(length) + rng.random(len(length)) * np.log(1.2), kind="stable")
        filled = np.cumsum(length[order]) // positions
        cuts = np.nonzero(np.diff(filled))[0] + 1
        batches = np.split(order, cuts)
        return [batches[place] for place in rng.permutation(len(batches))]

    def batch(self, chosen: Rows) -> tuple[Tensor, Tensor]:
        """(b, T) items, oldest first, then NO_ITEM; and (b, T) the item after each."""
        start, length = self.start[chosen], self.end[chosen] - self.start[chosen] - 1
        place = np.arange(int(length.max()))
        inside = place < length[:, None]
        at = np.where(inside, start[:, None] + place, 0)
        inputs = np.where(inside, self.item_rows[at], NO_ITEM)
        targets = np.where(inside, self.item_rows[np.where(inside, at + 1, 0)], NO_ITEM)
        return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(frozen=True)
class Readings:
    """One example a position: (n, E) float16 vectors of the history's text, and (n,) int64 the next item."""

    vectors: np.ndarray
    target: Rows
    users: Rows

    @classmethod
    def of(
        cls,
        train: Histories,
        history_items: int,
        read: Callable[[Rows, Words | None], Scores],
        *,
        last: int,
        most: int,
    ) -> "Readings":
        """The `last` places of every list, of which `most` are drawn where there are more.

        Args:
            read: maps (n, H) item rows, most recent first, and what is known of each user to (n, E) vectors.
        """
        positions = Positions.of(train, history_items, last=last)
        chosen = np.sort(np.random.default_rng(0).permutation(len(positions))[:most])
        about = None if train.about is None else train.about[positions.users[chosen]]
        vectors = read(positions.context[chosen], about).astype(np.float16)
        return cls(vectors, positions.target[chosen], positions.users[chosen])

    def __len__(self) -> int:
        return len(self.target)

    @property
    def targets(self) -> Rows:
        """See Examples."""
        return self.target

    def batches(self, positions: int, rng: np.random.Generator) -> list[Rows]:
        """See Examples."""
        return np.split(rng.permutation(len(self)), range(positions, len(self), positions))

    def batch(self, chosen: Rows) -> tuple[Tensor, Tensor]:
        """(b, E) vectors of the histories before, and (b,) next items."""
        return torch.from_numpy(self.vectors[chosen].astype(np.float32)), torch.from_numpy(self.target[chosen])
