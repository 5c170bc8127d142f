"""Ten million vectors on two cores: a streamed build that goes on where it was killed, and what it finds."""

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import record
from bench.vectors import CHUNK, ClusteredVectors
from data.schema import Rows, Scores
from index.approximate import ApproximateIndex, trained
from index.layout import FAISS, TRAINING_POINTS, Effort, IndexKind, Layout
from index.measure import latencies, recall_of
from store.atomic import atomic_write

FILE = "index.json"
SEED = 20_140_723
K = 100
QUERIES = 1_000
KEPT_DIMENSIONS = 15 / 16
"""Of the dimensions those of most variance are kept: 30 parts of four then take 30 bytes, centroids and links 1."""
SAVE_EVERY = 10
"""Chunks between two saves; a killed build loses at most these."""
TARGET = 0.96
"""Share of queries whose exact best must be among the 100, on half of them; the other half is reported."""


@dataclass(frozen=True)
class Projection:
    """The directions of most variance, turned at random so that every part of a code has as much to say.

    Attributes:
        matrix: (D, d) float32, orthonormal columns.
    """

    matrix: Scores

    @classmethod
    def of(cls, sample: Scores, kept: int) -> "Projection":
        """From (n, D) float32 vectors."""
        _, directions = np.linalg.eigh(sample.T @ sample)  # inner products: not centred
        turn, _ = np.linalg.qr(np.random.default_rng(SEED).standard_normal((kept, kept)))
        return cls(np.asarray(directions[:, -kept:] @ turn, dtype=np.float32))

    def __call__(self, vectors: Scores) -> Scores:
        return vectors @ self.matrix


def ten_million(args: argparse.Namespace) -> None:
    """Builds by chunks, goes on where it was killed; one set of parameters, on queries that chose nothing."""
    drawn = ClusteredVectors(args.count, 128, seed=SEED)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    index, projection, seconds = built(drawn, folder)
    queries = drawn.queries(QUERIES)
    best = exact_best(drawn, queries, folder / f"exact-{args.count}.npy")
    asked = projection(queries)
    effort, reached = chosen_effort(index, asked[::2], best[::2])
    held_out, answers = asked[1::2], best[1::2]
    _, found = index.search(held_out, K)
    times = latencies(lambda query: index.search(query, K), held_out, searches=1_000) * 1e3
    more: dict[str, Any] = {
        "count": args.count,
        "one_recall_at_100": round(float((found == answers[:, :1]).any(axis=1).mean()), 4),
        "recall_at_100": round(float(recall_of(found, answers).mean()), 4),
        "reached_while_choosing": reached,
        "layout": index.layout.model_dump(mode="json"),
        "effort": effort.model_dump(),
        "dimensions_kept": index.dimension,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    record(FILE, "ten_million_build_hours", round(seconds / 3600, 4), **more)
    record(FILE, "ten_million_bytes_per_vector", round(index.searched_bytes, 2), ids=8, **more)
    record(
        FILE,
        "ten_million_p50_ms",
        round(float(np.median(times)), 3),
        p99_ms=round(float(np.percentile(times, 99)), 3),
        **more,
    )


def layout_for(count: int) -> Layout:
    """A product code of 30 bytes; a centroid for about 1,200 vectors."""
    lists = 2 ** round(np.log2(max(16, count / 1_200)))
    return Layout(kind=IndexKind.IVF_PQ, lists=lists, parts=30, keep_vectors=False)


def built(drawn: ClusteredVectors, folder: Path) -> tuple[ApproximateIndex, Projection, float]:
    """The whole index, its projection, and the seconds that all runs spent on it together."""
    layout, state = layout_for(drawn.count), folder / f"progress-{drawn.count}.json"
    started = time.perf_counter()
    told: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"seconds": 0.0, "file": None}
    if told["file"]:
        index = FAISS.read_index(str(folder / told["file"]))
        projection = Projection(np.load(folder / f"projection-{drawn.count}.npy"))
        print(f"goes on after {index.ntotal:,} vectors and {told['seconds']:.0f} s")
    else:
        sample = training_sample(drawn, layout)
        projection = Projection.of(sample, round(KEPT_DIMENSIONS * drawn.dimension))
        np.save(folder / f"projection-{drawn.count}.npy", projection.matrix)
        index = trained(layout, projection(sample))
        print(f"trained on {len(sample):,} vectors in {time.perf_counter() - started:.0f} s")
        told = _saved(index, folder, state, drawn.count, told, time.perf_counter() - started)
        started = time.perf_counter()
    number = index.ntotal // CHUNK
    for chunk in drawn.chunks(start=number):
        index.add(projection(chunk))
        number += 1
        if number % SAVE_EVERY == 0 or index.ntotal == drawn.count:
            told = _saved(index, folder, state, drawn.count, told, time.perf_counter() - started)
            started = time.perf_counter()
            print(f"{index.ntotal:,} vectors, {told['seconds']:.0f} s")
    return ApproximateIndex(index, layout, effort=Effort()), projection, told["seconds"]


def _saved(index: Any, folder: Path, state: Path, count: int, told: dict[str, Any], spent: float) -> dict[str, Any]:
    """Writes the index under a new name, then the state that names it, then deletes the old one."""
    name = f"index-{count}-{index.ntotal}.faiss"
    FAISS.write_index(index, str(folder / name))
    new = {"seconds": told["seconds"] + spent, "file": name}
    atomic_write(state, json.dumps(new))
    if told["file"] and told["file"] != name:
        (folder / told["file"]).unlink(missing_ok=True)
    return new


def training_sample(drawn: ClusteredVectors, layout: Layout) -> Scores:
    """As many vectors as centroids need, in equal parts from chunks spread over all."""
    wanted = min(drawn.count, max(layout.lists * TRAINING_POINTS, 20_000))
    chunks = -(-drawn.count // CHUNK)
    some = np.unique(np.linspace(0, chunks - 1, min(chunks, max(1, wanted // 20_000))).astype(int))
    return np.concatenate([drawn.chunk(int(number))[: -(-wanted // len(some))] for number in some])


def exact_best(drawn: ClusteredVectors, queries: Scores, path: Path) -> Rows:
    """(n, K) rows of the best of all vectors as they were drawn, not as they are projected or coded."""
    if path.exists():
        return np.asarray(np.load(path))
    scores = np.full((len(queries), K), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), K), -1, dtype=np.int64)
    for number, chunk in enumerate(drawn.chunks()):
        found = queries @ chunk.T
        some = np.argpartition(-found, min(K, found.shape[1]) - 1, axis=1)[:, :K]
        both = np.concatenate([scores, np.take_along_axis(found, some, 1)], axis=1)
        places = np.concatenate([rows, some + number * CHUNK], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :K]
        scores, rows = np.take_along_axis(both, order, 1), np.take_along_axis(places, order, 1)
    np.save(path, rows)
    return rows


def chosen_effort(index: ApproximateIndex, queries: Scores, best: Rows) -> tuple[Effort, bool]:
    """The fewest probes with which the exact best is among the 100 for the target's share of queries."""
    effort = Effort()
    for probes in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
        effort = Effort(probes=min(probes, index.layout.lists))
        index.set_effort(effort)
        _, found = index.search(queries, K)
        share = float((found == best[:, :1]).any(axis=1).mean())
        print(f"{probes} probes: the best is among the 100 for {share:.4f}")
        if share >= TARGET:
            return effort, True
    return effort, False
