"""What a reranker learns from: for each example a history, the item taken next, and items not taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.schema import NO_ITEM, Histories, Rows, Scores
from rerank.hints import NO_HINT


@dataclass(frozen=True, slots=True)
class TrainingLists:
    """E examples over a catalog of N texts.

    Attributes:
        texts: text of each item, by row.
        histories: E lists, what was known when the target was taken.
        targets: (E,) int64, the item taken.
        candidates: (E, K) int64, the retriever's candidates, from which hard negatives are drawn; NO_ITEM where a
            list ends early. K may be 0, and a row may be empty: then all negatives are easy ones. The target may
            stand among them or not; it is never drawn as a negative.
        easy_weights: (N,) ≥ 0, how likely a row is drawn as an easy negative; None: all alike. A power of the
            popularity gives negatives that cannot be told by popularity alone.
        prior: (E, K) float32 beside `candidates`, the retriever's own score, which the reranker is to add to.
        teacher: (E, K) float32 beside `candidates`, the scores of a model to learn from.
        grades: (E, K) int64 beside `candidates`, which are then rated items, whose ratings alone are learnt: the place
            of each rating in its scale.
        hints: (E, K) int64 beside `candidates`, what retrieval knows of each; see `rerank.hints`.
        exclude_known: whether items of the history are never negatives, as they are in no list that is served.
        also_taken: E lists of items that were taken after the history, the target among them or not; never negatives.
    """

    texts: Sequence[str]
    histories: Histories
    targets: Rows
    candidates: Rows
    easy_weights: npt.NDArray[np.float64] | None = None
    prior: Scores | None = None
    teacher: Scores | None = None
    grades: Rows | None = None
    hints: Rows | None = None
    exclude_known: bool = True
    also_taken: Histories | None = None

    def __post_init__(self) -> None:
        counts = {"histories": len(self.histories), "targets": len(self.targets), "candidates": len(self.candidates)}
        if self.also_taken is not None:
            counts["also_taken"] = len(self.also_taken)
        columns = {"prior": self.prior, "teacher": self.teacher, "grades": self.grades, "hints": self.hints}
        for name, scores in columns.items():
            if scores is not None and scores.shape != self.candidates.shape:
                raise ValueError(f"{name} has the shape {scores.shape}, the candidates {self.candidates.shape}")
        if len(set(counts.values())) > 1:
            raise ValueError(f"training lists disagree on the number of examples: {counts}")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, places: Rows) -> "TrainingLists":
        """The examples at `places`, in that order."""
        return TrainingLists(
            self.texts,
            self.histories.take(places),
            self.targets[places],
            self.candidates[places],
            self.easy_weights,
            None if self.prior is None else self.prior[places],
            None if self.teacher is None else self.teacher[places],
            None if self.grades is None else self.grades[places],
            None if self.hints is None else self.hints[places],
            self.exclude_known,
            None if self.also_taken is None else self.also_taken.take(places),
        )

    def no_negatives(self, place: int) -> Rows:
        """The history, where none of it may be taken again, and what was taken after it besides the target."""
        known = self.histories[place] if self.exclude_known else np.empty(0, dtype=np.int64)
        if self.also_taken is None:
            return known
        also = self.also_taken[place]
        return np.concatenate([known, also[also != self.targets[place]]])

    def after_last_item(self) -> "TrainingLists":
        """The same examples, of whose histories only the last item is known; all negatives are easy ones."""
        rows = self.histories.last(1)[:, 0]
        offsets = np.concatenate([[0], np.cumsum(rows != NO_ITEM)]).astype(np.int64)
        last = Histories(rows[rows != NO_ITEM], offsets, about=self.histories.about)
        none = np.empty((len(self), 0), dtype=np.int64)
        return TrainingLists(
            self.texts,
            last,
            self.targets,
            none,
            self.easy_weights,
            exclude_known=self.exclude_known,
            also_taken=self.also_taken,
        )

    @property
    def scored(self) -> bool:
        """Whether lists are drawn from the candidates alone, which have scores beside them."""
        return self.prior is not None or self.teacher is not None

    @property
    def found(self) -> Rows:
        """Places of the examples whose target is among their candidates."""
        return np.flatnonzero((self.candidates == self.targets[:, None]).any(axis=1))


@dataclass(frozen=True, slots=True)
class DrawnList:
    """One list to choose from.

    Attributes:
        item_rows: (k,) int64 in random order, each row once.
        target_place: where the item that was taken stands; None where it is not in the list.
        prior: (k,) float32, the retriever's score of each; None: nothing is known.
        teacher: (k,) float32, the teacher's score of each.
        grades: (k,) int64, how each was rated.
        hints: (k,) int64, what retrieval knows of each.
    """

    item_rows: Rows
    target_place: int | None
    prior: Scores | None = None
    teacher: Scores | None = None
    grades: Rows | None = None
    hints: Rows | None = None


def draw_list(lists: TrainingLists, place: int, *, size: int, hard_share: float, rng: np.random.Generator) -> DrawnList:
    """The target of one example among `size` − 1 negatives, in random order.

    Items of the history are negatives only where they may be taken again, what was taken later never. Where hard ones
    are too few, easy ones fill up; where the catalog is too small for `size`, the list is shorter. Where candidates
    have scores beside them all items are drawn from them, and the target stands among these only if the retriever
    found it. Of rated items all are taken.

    Args:
        lists: the examples.
        place: of the example.
        size: k, target included.
        hard_share: in [0, 1], the expected share of negatives drawn from the retriever's candidates.
        rng: source of all chance.
    """
    if lists.grades is not None:
        there = lists.candidates[place] != NO_ITEM
        return DrawnList(lists.candidates[place, there], None, grades=lists.grades[place, there])
    if lists.scored:
        return _draw_scored(lists, place, size=size, rng=rng)
    target = int(lists.targets[place])
    taken = {target, NO_ITEM, *lists.no_negatives(place).tolist()}
    hard = np.array([row for row in lists.candidates[place].tolist() if row not in taken], dtype=np.int64)
    count = min(len(hard), int(rng.binomial(size - 1, hard_share)))
    negatives: list[int] = rng.choice(hard, count, replace=False).tolist() if count else []
    negatives += _easy(lists, size - 1 - count, {*taken, *negatives}, rng)
    rows = np.array([target, *negatives], dtype=np.int64)
    order = rng.permutation(len(rows))
    hints = None if lists.hints is None else _hints_of(rows[order], lists.candidates[place], lists.hints[place])
    return DrawnList(rows[order], int(np.flatnonzero(order == 0)[0]), hints=hints)


def _draw_scored(lists: TrainingLists, place: int, *, size: int, rng: np.random.Generator) -> DrawnList:
    """At most `size` candidates with their scores."""
    rows = lists.candidates[place]
    target = int(lists.targets[place])
    fresh = (rows != NO_ITEM) & ~np.isin(rows, lists.no_negatives(place))
    at_target = np.flatnonzero(fresh & (rows == target))
    others = np.flatnonzero(fresh & (rows != target))
    count = min(len(others), size - len(at_target))
    places = rng.permutation(np.concatenate([at_target, rng.choice(others, count, replace=False)]))
    return DrawnList(
        rows[places],
        int(np.flatnonzero(rows[places] == target)[0]) if len(at_target) else None,
        None if lists.prior is None else lists.prior[place, places],
        None if lists.teacher is None else lists.teacher[place, places],
        hints=None if lists.hints is None else lists.hints[place, places],
    )


def _hints_of(rows: Rows, candidates: Rows, hints: Rows) -> Rows:
    """(k,) those of `rows` among (K,) candidates; nothing is known of others."""
    known = dict(zip(candidates.tolist(), hints.tolist(), strict=True))
    return np.array([known.get(row, NO_HINT) for row in rows.tolist()], dtype=np.int64)


def _easy(lists: TrainingLists, count: int, taken: set[int], rng: np.random.Generator) -> list[int]:
    """Up to `count` different rows that are not in `taken`."""
    found: dict[int, None] = {}
    n_items = len(lists.texts)
    weights = lists.easy_weights
    cumulative = None if weights is None else np.cumsum(weights)
    for _ in range(4):  # a few rounds of drawing suffice unless nearly the whole catalog is taken
        if len(found) >= count:
            return list(found)[:count]
        if cumulative is None:
            drawn = rng.integers(n_items, size=2 * count + 8)
        else:
            drawn = np.searchsorted(cumulative, rng.random(2 * count + 8) * cumulative[-1], side="right")
        found |= dict.fromkeys(row for row in drawn.tolist() if row not in taken)
    free = [row for row in range(n_items) if row not in taken and row not in found]
    rest = rng.permutation(np.array(free, dtype=np.int64)).tolist()
    return [*found, *rest][:count]


def earlier_positions(
    texts: Sequence[str],
    histories: Histories,
    *,
    per_user: int,
    min_history: int = 1,
    easy_weights: npt.NDArray[np.float64] | None = None,
    exclude_known: bool = True,
    rng: np.random.Generator,
) -> TrainingLists:
    """Examples for a first round with easy negatives: positions inside the histories, each with what came before.

    They carry no candidates of the retriever, which has been fitted on these very items and would flatter them.

    Args:
        texts: text of each item, by row.
        histories: of the training part.
        per_user: at most so many different positions of each history.
        min_history: items that must come before the target.
        easy_weights, exclude_known: see `TrainingLists`.
        rng: chooses the positions.
    """
    prefixes: list[Rows] = []
    targets: list[int] = []
    owners: list[int] = []
    for place in range(len(histories)):
        rows = histories[place]
        possible = np.arange(min_history, len(rows))
        for position in rng.permutation(possible)[:per_user].tolist():
            prefixes.append(rows[:position])
            targets.append(int(rows[position]))
            owners.append(place)
    about = None if histories.about is None else histories.about[owners]
    lengths = [len(prefix) for prefix in prefixes]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *prefixes])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    no_candidates = np.empty((len(targets), 0), dtype=np.int64)
    return TrainingLists(
        texts,
        Histories(flat, offsets, about=about),
        np.array(targets, dtype=np.int64),
        no_candidates,
        easy_weights,
        exclude_known=exclude_known,
    )


def batches(lengths: Rows, *, size: int, rng: np.random.Generator) -> list[Rows]:
    """One epoch: every place once, in random batches of places with like lengths, to save padding.

    Args:
        lengths: (E,) tokens of each example.
        size: places in a batch.
        rng: source of the order.
    """
    window = 32 * size
    order = rng.permutation(len(lengths))
    found: list[Rows] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        found.extend(part[first : first + size] for first in range(0, len(part), size))
    return [found[place] for place in rng.permutation(len(found))]
