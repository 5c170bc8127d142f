"""Column names, and the frozen values that cross the borders between folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from data.vocabulary import Vocabulary

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
POSITION = "position"
RATING = "rating"
TITLE = "title"
TEXT = "text"
VECTOR = "vector"
RANK = "rank"
SCORE = "score"

TRANSITIONS = "transitions"
"""Name of the source of candidates that counts what followed what."""

NO_ITEM = -1
"""Stands in an array of item rows where a list ends early."""

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Words = npt.NDArray[np.object_]
"""Of str."""
Mask = npt.NDArray[np.bool_]
"""True for each row that may be returned."""


@dataclass(frozen=True, slots=True)
class Histories:
    """Ragged lists of item rows, each oldest first: what B users took, in order.

    Attributes:
        item_rows: (R,) int64, all lists one after another.
        offsets: (B + 1,) int64; list b is `item_rows[offsets[b]:offsets[b + 1]]`.
        timestamps: (R,) int64 Unix seconds beside item_rows, `NO_TIME` where unknown; None without any time.
        asked_at: (B,) int64 Unix seconds of the moment at which each list is asked what comes next, `NO_TIME`
            where unknown; None for the end of the log.
        ratings: (R,) float32 beside item_rows, NaN where unknown; None in a log without them.
        about: (B,) str, what is known of who took each list, empty where nothing is; None without a table of users.
        disliked: B further lists, of what each of those rated too low to count; None where there is nothing.
    """

    item_rows: Rows
    offsets: Rows
    timestamps: Rows | None = None
    asked_at: Rows | None = None
    ratings: Scores | None = None
    about: Words | None = None
    disliked: "Histories | None" = None

    NO_TIME = np.iinfo(np.int64).min

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], *, about: Sequence[str] | None = None) -> "Histories":
        """Histories without time from plain lists of item rows, oldest first."""
        lengths = np.array([len(rows) for rows in lists], dtype=np.int64)
        flat = np.array([row for rows in lists for row in rows], dtype=np.int64)
        words = None if about is None else np.array(about, dtype=np.object_)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), about=words)

    @classmethod
    def joined(cls, parts: Sequence["Histories"]) -> "Histories":
        """The lists of all parts, one part after another; times, ratings and words only where every part has them.

        Of a part without what was disliked nothing was.
        """
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in parts)])
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.item_rows for part in parts)])
        times = [part.timestamps for part in parts if part.timestamps is not None]
        asked = [part.asked_at for part in parts if part.asked_at is not None]
        ratings = [part.ratings for part in parts if part.ratings is not None]
        about = [part.about for part in parts if part.about is not None]
        disliked = None
        if any(part.disliked is not None for part in parts):
            disliked = cls.joined([part.disliked or cls.of([[]] * len(part)) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(
            rows,
            offsets,
            np.concatenate(times) if times and len(times) == len(parts) else None,
            np.concatenate(asked) if asked and len(asked) == len(parts) else None,
            np.concatenate(ratings) if ratings and len(ratings) == len(parts) else None,
            np.concatenate(about) if about and len(about) == len(parts) else None,
            disliked,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> Rows:
        return self.item_rows[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> Rows:
        """(B,) int64, the number of items in each list."""
        return np.diff(self.offsets)

    @property
    def known(self) -> list[Rows]:
        """What is left out of each list's recommendations where known items are: its own, and what was disliked."""
        lists = [self[place] for place in range(len(self))]
        if self.disliked is None:
            return lists
        return [np.concatenate([rows, self.disliked[place]]) for place, rows in enumerate(lists)]

    @property
    def list_of_row(self) -> Rows:
        """(R,) int64, for every entry of item_rows the list that it stands in."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def keep(self, mask: npt.NDArray[np.bool_]) -> "Histories":
        """The same lists with only the entries where `mask` (R,) is true."""
        kept = np.bincount(self.list_of_row[mask], minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        times = None if self.timestamps is None else self.timestamps[mask]
        ratings = None if self.ratings is None else self.ratings[mask]
        return Histories(self.item_rows[mask], offsets, times, self.asked_at, ratings, self.about, self.disliked)

    def take(self, places: Rows) -> "Histories":
        """The lists at `places`, in that order."""
        lengths = self.lengths[places]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.offsets[places] - offsets[:-1], lengths) + np.arange(offsets[-1])
        times = None if self.timestamps is None else self.timestamps[entries]
        asked_at = None if self.asked_at is None else self.asked_at[places]
        ratings = None if self.ratings is None else self.ratings[entries]
        about = None if self.about is None else self.about[places]
        disliked = None if self.disliked is None else self.disliked.take(places)
        return Histories(self.item_rows[entries], offsets, times, asked_at, ratings, about, disliked)

    def about_of(self, place: int) -> str:
        """What is known of who took the list at `place`; empty where nothing is."""
        return "" if self.about is None else str(self.about[place])

    def asked_after_last(self) -> "Histories":
        """The same lists, each asked at the moment of its last item: when a log is replayed user by user."""
        if self.timestamps is None or not len(self.item_rows):
            return self
        last = self.timestamps[np.maximum(self.offsets[1:] - 1, 0)]
        return replace(self, asked_at=np.where(self.lengths > 0, last, self.NO_TIME))

    def without_last(self, count: int) -> "Histories":
        """The same lists without their last `count` entries; shorter ones are empty."""
        left = self.offsets[1:][self.list_of_row] - 1 - np.arange(len(self.item_rows))
        return self.keep(left >= count)

    def last(self, count: int) -> Rows:
        """(B, count) int64: the last items of each list, most recent first, then NO_ITEM."""
        steps = np.arange(1, count + 1)
        entries = self.offsets[1:, None] - steps  # (B, count)
        inside = steps <= self.lengths[:, None]
        if not len(self.item_rows):
            return np.full(inside.shape, NO_ITEM, dtype=np.int64)
        return np.where(inside, self.item_rows[np.where(inside, entries, 0)], NO_ITEM)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All items, by row.

    Attributes:
        items: one row an item: item_id, title (for people), text (for models), and the user's own columns.
        vocabulary: item_id ↔ item_row, in the order of `items`.
    """

    items: pl.DataFrame
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def texts(self) -> list[str]:
        """The text of each item, by row."""
        return self.items[TEXT].to_list()

    @property
    def titles(self) -> list[str]:
        """The title of each item, by row."""
        return self.items[TITLE].to_list()

    @property
    def vectors(self) -> Scores | None:
        """(N, E) float32 of length 1, where the catalog came with a vector for each item; else None."""
        return unit_vectors(self.items) if brings_vectors(self.items) else None


def brings_vectors(items: pl.DataFrame) -> bool:
    """Whether items came with a vector each; a column that is merely called so holds no arrays, lists are text."""
    return isinstance(items.schema.get(VECTOR), pl.Array)


def unit_vectors(items: pl.DataFrame) -> Scores:
    """(n, E) float32 of length 1, of items that came with a vector each."""
    given = items[VECTOR].to_numpy()
    return np.asarray(given / np.linalg.norm(given, axis=1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Disliked:
    """What was rated too low to count: it teaches nothing and is no history, but is not recommended again.

    That holds for what is served now. No split has it: that somebody will dislike an item is, there, yet to come.

    Attributes:
        interactions: a list for each of `users`, with times where the log has any.
        users: who rated something so, some of whom may have taken nothing else.
    """

    interactions: Histories
    users: Vocabulary

    def of(self, users: Vocabulary) -> Histories:
        """A list for each of `users`, empty for whoever rated nothing so."""
        log, none = self.interactions, len(self.users)
        with_empty = replace(log, offsets=np.append(log.offsets, log.offsets[-1]))
        places = [self.users.row(user_id) if user_id in self.users else none for user_id in users.ids]
        return with_empty.take(np.array(places, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Dataset:
    """A validated log and catalog: one history for each user row.

    Attributes:
        last_event: number of the last event of a service that was taken in, as all before it were; 0 without any.
        disliked: None where nothing was rated too low to count.
    """

    interactions: Histories
    users: Vocabulary
    catalog: Catalog
    last_event: int = 0
    disliked: Disliked | None = None

    def holds(self, user_id: str) -> bool:
        """Whether anything of a user is there, be it only what they disliked."""
        return user_id in self.users or (self.disliked is not None and user_id in self.disliked.users)


@dataclass(frozen=True, slots=True)
class Holdout:
    """Who is asked, what is known of them, and what they took next.

    Attributes:
        part: "validation" or "test".
        user_rows: (n,) int64.
        histories: n lists, all that is known at the time of asking.
        targets: n lists of at least one item; leave one out has exactly one each.
        exclude_known: whether items of a history are left out of its user's list, as they are when it is served.
    """

    part: str
    user_rows: Rows
    histories: Histories
    targets: Histories
    exclude_known: bool = True

    def __len__(self) -> int:
        return len(self.user_rows)

    def take(self, places: Rows) -> "Holdout":
        """The same question for the users at `places` only."""
        histories, targets = self.histories.take(places), self.targets.take(places)
        return Holdout(self.part, self.user_rows[places], histories, targets, self.exclude_known)

    @classmethod
    def joined(cls, parts: Sequence["Holdout"], *, part: str) -> "Holdout":
        """All questions of all parts under one name, asked as those of the first; a user may be asked in several."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(asked.user_rows for asked in parts)])
        histories = Histories.joined([asked.histories for asked in parts])
        targets = Histories.joined([asked.targets for asked in parts])
        return cls(part, rows, histories, targets, parts[0].exclude_known if parts else True)


@dataclass(frozen=True, slots=True)
class Split:
    """A data set divided in time.

    Attributes:
        train: a (possibly empty) list for every user row.
        before_test: where everybody is asked at one moment, everything that happened before it, a list for every
            user row: what a system in service would have counted by then. None elsewhere.
    """

    train: Histories
    validation: Holdout
    test: Holdout
    before_test: Histories | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Ranked items for B users, with every source's score for every one of them.

    Attributes:
        item_rows: (B, K) int64, NO_ITEM where a list ends early.
        score: (B, K) float32, falling along each row; -inf where there is no item.
        sources: name → (B, K) float32, each source's own score for the item in that place.
    """

    item_rows: Rows
    score: Scores
    sources: Mapping[str, Scores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item_rows)

    @property
    def depth(self) -> int:
        """K, the length of the lists."""
        return int(self.item_rows.shape[1])

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(B, K), true where there is an item."""
        return np.asarray(self.item_rows != NO_ITEM)

    def head(self, depth: int) -> "Candidates":
        """The first `depth` places of every list."""
        cut = {name: scores[:, :depth] for name, scores in self.sources.items()}
        return Candidates(self.item_rows[:, :depth], self.score[:, :depth], cut)

    def take(self, places: Rows) -> "Candidates":
        """The lists at `places`, in that order."""
        taken = {name: scores[places] for name, scores in self.sources.items()}
        return Candidates(self.item_rows[places], self.score[places], taken)

    def with_source(self, name: str, scores: Scores) -> "Candidates":
        """The same lists with one more source's (B, K) scores beside them."""
        return replace(self, sources={**self.sources, name: scores})

    def ranked_by(self, score: Scores) -> "Candidates":
        """The same items ordered by another (B, K) score; ties keep the present order.

        Raises:
            ValueError: when a score of a present item is NaN.
        """
        if np.isnan(score[self.present]).any():
            raise ValueError("a candidate's score is NaN")
        keyed = np.where(self.present, score, -np.inf).astype(np.float32)
        # Absent items go last even behind a present item whose score is -inf.
        order = np.lexsort((-keyed, ~self.present), axis=-1)
        moved = {name: np.take_along_axis(scores, order, 1) for name, scores in self.sources.items()}
        return Candidates(np.take_along_axis(self.item_rows, order, 1), np.take_along_axis(keyed, order, 1), moved)
