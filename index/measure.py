"""What an index finds and how long it takes, against exact search on queries of the real kind."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from data.schema import NO_ITEM, Rows, Scores
from index.approximate import ApproximateIndex
from index.base import VectorIndex
from index.layout import Effort, IndexKind
from index.lists import Allowed

LATENCIES = 200
"""Searches, at least, that a time is the median of; queries come round again."""

WIDEST = 16.0
"""Candidates that are scored once more, as a multiple of k, at most."""

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, WIDEST)
CAUTION = 2.0
"""Standard errors of the mean recall by which the target must be exceeded, so that other queries reach it, too."""


FILTERED, FILTERED_SHARE = 100, 0.1
"""Queries, and the share of vectors that a filter leaves, by which the effort behind filters is chosen."""

RUNGS_BEYOND = 3
"""Efforts tried beyond the least that reaches the target."""


@dataclass(frozen=True)
class Sample:
    """Queries and their exact answers.

    Attributes:
        queries: (n, D) float32.
        rows: (n, k) int64, the best by exact search.
    """

    queries: Scores
    rows: Rows

    @classmethod
    def of(cls, exact: Callable[[Scores, int], tuple[Scores, Rows]], queries: Scores, k: int) -> "Sample":
        """Asks an exact search."""
        return cls(queries, exact(queries, k)[1])

    @property
    def k(self) -> int:
        """How many rows an answer has."""
        return int(self.rows.shape[1])

    def halves(self) -> tuple["Sample", "Sample"]:
        """Every other query, and the rest: one to choose by, one to report."""
        return Sample(self.queries[::2], self.rows[::2]), Sample(self.queries[1::2], self.rows[1::2])


@dataclass(frozen=True)
class Times:
    """Milliseconds of single queries and queries a second in batches."""

    p50_ms: float
    p99_ms: float
    queries_per_second: float


def recall_of(found: Rows, best: Rows) -> Scores:
    """(n,) share of each query's best rows (n, k) that are among those found (n, any)."""
    # Every query's rows in a range of their own, so that one pass over all of them tells.
    high = int(max(found.max(initial=0), best.max(initial=0))) + 1
    place = np.arange(len(best))[:, None] * high
    hits = np.isin(best + place, (found + place)[found != NO_ITEM]) & (best != NO_ITEM)
    return np.asarray(hits.sum(1) / np.maximum((best != NO_ITEM).sum(1), 1), dtype=np.float32)


def reaches(recalls: Scores, target: float) -> bool:
    """Whether the mean recall exceeds the target by more than chance, or is as good as perfect."""
    error = float(recalls.std()) / len(recalls) ** 0.5
    return bool(float(recalls.mean()) - CAUTION * error >= target)


def times_of(index: VectorIndex, queries: Scores, k: int, *, searches: int = LATENCIES, batch: int = 64) -> Times:
    """Times searches for the k best, one query at a time and in batches."""
    seconds = latencies(lambda query: index.search(query, k), queries, searches=searches)
    batches = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    started = time.perf_counter()
    for part in batches:
        index.search(part, k)
    rate = len(queries) / (time.perf_counter() - started)
    return Times(float(np.median(seconds)) * 1e3, float(np.percentile(seconds, 99)) * 1e3, rate)


def latencies(search: Callable[[Scores], object], queries: Scores, *, searches: int = LATENCIES) -> Scores:
    """(searches,) seconds of single queries, in turn; some first searches are not counted."""
    seconds = np.empty(searches, dtype=np.float32)
    for step in range(-min(5, searches), searches):
        query = queries[step % len(queries)][None, :]
        started = time.perf_counter()
        search(query)
        if step >= 0:
            seconds[step] = time.perf_counter() - started
    return seconds


def cheapest_effort(index: ApproximateIndex, sample: Sample, target: float) -> tuple[Effort, bool]:
    """The effort of least median time among those that reach the target; where none does, the best recall's.

    The index is left at that effort.

    Returns:
        The effort, and whether it reaches the target.
    """
    contenders, best = _contenders(index, sample, target)
    if not contenders:
        index.set_effort(best)
        return best, False
    medians = []
    for effort in contenders:
        index.set_effort(effort)
        medians.append(times_of(index, sample.queries, sample.k, searches=60).p50_ms)
    chosen = contenders[int(np.argmin(medians))]
    chosen = chosen.model_copy(update={"widening": _widening(index, sample, chosen, target)})
    chosen = chosen.model_copy(update={"exact_below": _exact_below(index, sample, chosen)})
    index.set_effort(chosen)
    return chosen, True


def _contenders(index: ApproximateIndex, sample: Sample, target: float) -> tuple[list[Effort], Effort]:
    """The least effort that reaches the target, and a few that scan more to score less again; the best, too."""
    found: list[Effort] = []
    best, best_recall, beyond = Effort(), -1.0, 0
    for effort in _ladder(index):
        index.set_effort(effort)
        told = _recalls(index, effort, sample)
        if (most := float(told[-1][1].mean())) > best_recall:
            best, best_recall = told[-1][0], most
        enough = next((candidate for candidate, recalls in told if reaches(recalls, target)), None)
        if enough is not None and (not found or enough.rescored < found[-1].rescored):
            found.append(enough)
        beyond += bool(found)
        if beyond > RUNGS_BEYOND or (found and found[-1].rescored == 1):
            break
    return found, best


def _ladder(index: ApproximateIndex) -> list[Effort]:
    """Efforts to try, from small to large, each about 1.4 times the one before."""
    steps = sorted({*(2**power for power in range(16)), *(3 * 2**power for power in range(15))})
    if index.kind is IndexKind.HNSW:
        return [Effort(walk=walk, rescored=1) for walk in steps if 32 <= walk <= 4096]
    widest = WIDEST if index.layout.rescores else 1.0
    lists = index.layout.lists
    return [Effort(probes=probes, rescored=widest) for probes in steps if probes < lists] + [
        Effort(probes=lists, rescored=widest)
    ]


def _recalls(index: ApproximateIndex, effort: Effort, sample: Sample) -> list[tuple[Effort, Scores]]:
    """One effort with less and more rescoring: one search for the most candidates tells of all."""
    if not index.layout.rescores:
        _, rows = index.candidates(sample.queries, sample.k)
        return [(effort, recall_of(rows, sample.rows))]
    wide = min(len(index), int(sample.k * WIDEST))
    _, rows = index.candidates(sample.queries, wide)
    told = []
    for factor in FACTORS:
        # A best row among the first candidates survives rescoring: nothing scores higher than the best.
        recalls = recall_of(rows[:, : int(np.ceil(sample.k * factor))], sample.rows)
        told.append((effort.model_copy(update={"rescored": factor}), recalls))
    return told


def _widening(index: ApproximateIndex, sample: Sample, effort: Effort, target: float) -> float:
    """The least that reaches the target among a tenth of the vectors, drawn at random."""
    rng = np.random.default_rng(0)
    queries = sample.queries[:FILTERED]
    scattered = rng.random(len(index)) < FILTERED_SHARE
    for widening in (0.25, 0.5, 0.75):
        index.set_effort(effort.model_copy(update={"widening": widening, "exact_below": 0}))
        _, found = index.search(queries, sample.k, allowed=scattered)
        _, best = index.exact(queries, sample.k, Allowed.of(scattered, len(index)))
        if reaches(recall_of(found, best), target):
            return widening
    return 1.0


def _exact_below(index: ApproximateIndex, sample: Sample, effort: Effort) -> int:
    """Below how many allowed vectors scoring all of them is faster than the index's own way past a filter."""
    rng = np.random.default_rng(0)
    queries, size = sample.queries[:20], len(index)
    crossing = 0
    for share in (0.003, 0.01, 0.03, 0.1):
        allowed = rng.random(size) < share
        if allowed.sum() < 4 * sample.k:
            continue
        medians = []
        for exact_below in (size, 0):
            index.set_effort(effort.model_copy(update={"exact_below": exact_below}))
            search = partial(index.search, k=sample.k, allowed=allowed)
            medians.append(float(np.median(latencies(search, queries, searches=20))))
        if medians[0] > medians[1]:
            break
        crossing = int(allowed.sum())
    return max(crossing, 4 * sample.k)
