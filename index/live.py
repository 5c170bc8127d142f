"""An index that takes changes while it serves: an immutable base, a delta, and tombstones."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.schema import NO_ITEM, Mask, Rows, Scores
from index.base import VectorIndex
from index.changes import Change, ChangeKind
from index.delta import Delta, Growing, allows, merged
from store.errors import BadInput, CorruptArtifact, Mismatch, UnknownId

FEW_TOMBSTONES = 200
"""Up to so many of a base are searched around by fetching as many places more; beyond, by a mask."""


@dataclass(frozen=True)
class _State:
    """What one search sees, from its first line to its last; changes put another in its place.

    Attributes:
        dead: base slots whose row was removed or has a vector in the delta.
        alive: (M,) the same as a mask; None while nothing is dead.
    """

    dead: Rows
    alive: Mask | None
    delta: Delta
    allotted: int


class LiveIndex:
    """Meets VectorIndex over item rows; each vector has a slot, in the base or behind it, and slots are not reused.

    A row belongs to one item for ever: removed, it stays allotted, and it may come back with another vector.
    Searches may run in several threads beside one that applies changes.

    Args:
        base: M vectors; never changed.
        rows: (M,) int64, the item row of each of them, rising; None: slot n holds row n.
        allotted: rows given out so far, M where `rows` is None and nothing else is said.
    """

    def __init__(self, base: VectorIndex, *, rows: Rows | None = None, allotted: int | None = None) -> None:
        self.base = base
        self._base_rows = rows
        self._vectors = Growing(np.zeros((0, base.dimension), dtype=np.float32))
        self._rows = Growing(np.zeros(0, dtype=np.int64))
        # The present of whoever applies changes; searches see the last `_State` that was made of it.
        self._slot_of: dict[int, int] = {}
        self._base_alive: Mask | None = None
        self._delta_alive = np.zeros(0, dtype=np.bool_)
        known = len(base) if rows is None else int(rows[-1]) + 1
        self._allotted = known if allotted is None else allotted
        delta = Delta(np.zeros((0, base.dimension), np.float32), np.zeros(0, np.int64), self._delta_alive)
        self._state = _State(np.zeros(0, np.int64), None, delta, self._allotted)

    @property
    def dimension(self) -> int:
        """See VectorIndex.dimension."""
        return self.base.dimension

    def __len__(self) -> int:
        """Rows that were ever allotted, removed ones among them: the N of a mask."""
        return self._state.allotted

    @property
    def live_rows(self) -> Rows:
        """The rows that have a vector, rising."""
        state = self._state
        base = np.arange(len(self.base)) if self._base_rows is None else self._base_rows
        if state.alive is not None:
            base = base[state.alive]
        return np.sort(np.concatenate([base, state.delta.rows[state.delta.alive]]))

    @property
    def delta_share(self) -> float:
        """Slots of the delta and dead ones of the base, over those of the base: what compaction would tidy up."""
        return (len(self._state.delta) + len(self._state.dead)) / len(self.base)

    def has(self, rows: Rows) -> Mask:
        """(n,) whether each row has a vector now."""
        slots = self._base_slots(rows)
        in_base = slots != NO_ITEM
        if self._base_alive is not None:
            in_base &= self._base_alive[np.maximum(slots, 0)]
        return np.asarray(in_base | np.array([row in self._slot_of for row in rows.tolist()], dtype=np.bool_))

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        if not (there := self.has(rows)).all():
            raise IndexError(f"row {rows[~there][0]} has no vector in this index")
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        slots = np.array([self._slot_of.get(row, NO_ITEM) for row in rows.tolist()], dtype=np.int64)
        in_delta = slots != NO_ITEM
        found[in_delta] = self._state.delta.vectors[slots[in_delta]]
        if not in_delta.all():
            found[~in_delta] = self.base.vectors(self._base_slots(rows[~in_delta]))
        return found

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search; exact where the base is."""
        state = self._state
        scores, rows = self._search_base(state, vectors, k, exclude, allowed)
        if not len(state.delta):
            return scores, rows
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        more = state.delta.search(queries, k, least=scores[:, -1], exclude=exclude, allowed=allowed)
        return merged(scores, rows, more)

    def frozen(self) -> "LiveIndex":
        """This index as it is now, to be searched and not to be changed: changes of this one do not reach it."""
        view = copy.copy(self)
        view._slot_of = dict(self._slot_of)
        view._base_alive, view._delta_alive = self._state.alive, self._state.delta.alive
        return view

    def new_rows(self, count: int) -> Rows:
        """The next rows that a PUT may allot."""
        return np.arange(self._allotted, self._allotted + count)

    def refuse(self, change: Change) -> None:
        """Looks at a change before it is written down.

        Raises:
            Mismatch: when its vectors have another dimension.
            BadInput: when a vector is NaN or infinite, or a row stands twice.
            UnknownId: when a row has no vector that could be removed or kept, or is not the next to be allotted.
        """
        rows = change.rows
        if again := len(rows) - len(np.unique(rows)):
            raise BadInput(f"{again:,} of {len(rows):,} rows stand twice in one change: give each once")
        if change.kind is not ChangeKind.PUT:
            if not (there := self.has(rows)).all():
                raise UnknownId(f"{(~there).sum():,} of {len(rows):,} rows are not in the index: {_told(rows[~there])}")
            return
        self._refuse_vectors(change)
        new = rows[rows >= self._allotted]
        if (rows < 0).any() or not np.array_equal(new, self.new_rows(len(new))):
            raise UnknownId(f"the next row to be allotted is {self._allotted:,}, found {_told(new)}")

    def apply(self, changes: Iterable[Change]) -> None:
        """Takes changes into account, in their order; searches that are under way do not see them.

        Raises:
            CorruptArtifact: when one does not fit what came before it.
        """
        delta = self._state.delta
        dead: list[Rows] = [self._state.dead]
        for change in changes:
            try:
                self.refuse(change)
            except (BadInput, UnknownId, Mismatch) as error:
                raise CorruptArtifact(
                    f"a change of the journal does not fit its index ({error}): go back to an earlier release with "
                    "'python cli.py index rollback'"
                ) from error
            if change.kind is not ChangeKind.NOTE and len(change.rows):
                dead.append(self._bury(change.rows))
            if change.kind is ChangeKind.PUT and len(change.rows):
                delta = self._grown(change)
        self._state = _State(
            dead=np.unique(np.concatenate(dead)),
            alive=None if self._base_alive is None else self._base_alive.copy(),
            delta=replace(delta, alive=self._delta_alive[: len(delta)].copy()),
            allotted=self._allotted,
        )

    def _grown(self, change: Change) -> Delta:
        """The delta with the vectors of a PUT at its end; whether its slots are alive is added by the caller."""
        vectors = self._vectors.appended(change.vectors.astype(np.float32, copy=False))
        rows = self._rows.appended(change.rows)
        first = len(rows) - len(change.rows)
        if len(rows) > len(self._delta_alive):
            self._delta_alive = np.pad(self._delta_alive, (0, max(len(rows), 2 * first) - len(self._delta_alive)))
        self._delta_alive[first : len(rows)] = True
        self._slot_of.update(zip(change.rows.tolist(), range(first, len(rows)), strict=True))
        self._allotted = max(self._allotted, int(change.rows.max()) + 1)
        return Delta(vectors, rows, self._delta_alive)

    def _bury(self, rows: Rows) -> Rows:
        """Marks the slots of `rows` as dead; returns those of the base."""
        old = [slot for row in rows.tolist() if (slot := self._slot_of.pop(row, None)) is not None]
        self._delta_alive[old] = False
        found = self._base_slots(rows)
        slots: Rows = found[found != NO_ITEM]
        if len(slots):
            if self._base_alive is None:
                self._base_alive = np.ones(len(self.base), dtype=np.bool_)
            self._base_alive[slots] = False
        return slots

    def _search_base(
        self, state: _State, vectors: Scores, k: int, exclude: Sequence[Rows] | None, allowed: Mask | None
    ) -> tuple[Scores, Rows]:
        if exclude is not None and self._base_rows is not None:
            exclude = [self._base_slots(rows) for rows in exclude]
        mask = None
        if allowed is not None:
            mask = self._allowed_slots(allowed)
            mask = mask if state.alive is None else mask & state.alive
        elif len(state.dead) > FEW_TOMBSTONES:
            mask = state.alive
        elif len(state.dead):
            exclude = (
                [state.dead] * len(vectors) if exclude is None else [_joined(rows, state.dead) for rows in exclude]
            )
        scores, slots = self.base.search(vectors, k, exclude=exclude, allowed=mask)
        if self._base_rows is None:
            return scores, slots
        return scores, np.asarray(np.where(slots == NO_ITEM, NO_ITEM, self._base_rows[slots]))

    def _allowed_slots(self, allowed: Mask) -> Mask:
        if self._base_rows is not None:
            return allows(allowed, self._base_rows)
        if allowed.ndim == 1 and len(allowed) < len(self.base):
            return np.pad(allowed, (0, len(self.base) - len(allowed)))
        return allowed[: len(self.base)]

    def _base_slots(self, rows: Rows) -> Rows:
        """(n,) slots of the base by item row, dead ones too; NO_ITEM where it has none."""
        if self._base_rows is None:
            return np.asarray(np.where((rows >= 0) & (rows < len(self.base)), rows, NO_ITEM))
        slots = np.minimum(np.searchsorted(self._base_rows, rows), len(self._base_rows) - 1)
        return np.asarray(np.where(self._base_rows[slots] == rows, slots, NO_ITEM))

    def _refuse_vectors(self, change: Change) -> None:
        vectors = change.vectors
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise Mismatch(
                f"index has dimension {self.dimension}, the vectors have {vectors.shape[-1]}: they come from "
                "different models; encode them with the model that the index was built with"
            )
        if len(vectors) != len(change.rows):
            raise BadInput(f"{len(change.rows):,} rows but {len(vectors):,} vectors")
        broken = ~np.isfinite(vectors).all(axis=1)
        if broken.any():
            places = _told(np.flatnonzero(broken))
            raise BadInput(f"{broken.sum():,} of {len(vectors):,} vectors hold NaN or infinity (places: {places})")


def _joined(rows: Rows, more: Rows) -> Rows:
    return np.concatenate([rows, more])


def _told(numbers: Rows) -> str:
    return ", ".join(map(str, numbers[:5].tolist())) + (", …" if len(numbers) > 5 else "")
