"""Which index to build: flat where that is fast enough, else the fastest kind that finds enough, by measurement."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.schema import Scores
from index.approximate import ApproximateIndex
from index.checks import refuse_unusable
from index.faiss_index import FlatIndex, SavedIndex
from index.gpu import replicated
from index.layout import IndexKind, Layout, default_layout
from index.lists import exact_search
from index.manifest import Trial
from index.measure import Sample, cheapest_effort, recall_of, times_of
from index.milvus_collection import MilvusConfig
from index.milvus_index import MilvusIndex
from index.stored_vectors import Storage, StoredVectors
from store.errors import BadInput

AUTO = "auto"

TRIED = (IndexKind.IVF_FASTSCAN, IndexKind.IVF_RABITQ, IndexKind.IVF_SQ8, IndexKind.IVF_FLAT, IndexKind.HNSW)
"""What `auto` builds beside the flat index, as far as it fits."""

GRAPH_UP_TO = 100_000_000
"""Numbers (N × D) of a catalog for which `auto` still tries a graph, which takes minutes to build beyond."""

MEGABYTE = 1e6


class IndexConfig(BaseModel):
    """The index over item vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: IndexKind | Literal["auto"] = Field(
        "auto",
        description="flat, hnsw, ivf-flat, ivf-sq8, ivf-pq, ivf-fastscan, ivf-rabitq or milvus; auto measures all but "
        "the last",
    )
    recall_target: float = Field(0.99, gt=0, le=1, description="share of the exact best that a search must find")
    recall_at: int = Field(100, ge=1, description="how many best that is measured on")
    memory_mb: float | None = Field(
        None, gt=0, description="millions of bytes that searches may go through; unset: any; mapped vectors not counted"
    )
    storage: Storage = Field(Storage.FLOAT32, description="precision of stored vectors: float32, float16 or bfloat16")
    keep_vectors: bool = Field(
        True, description="quantised kinds keep the vectors in a mapped file and score their best candidates by them"
    )
    flat_below_ms: float = Field(1.0, ge=0, description="auto takes flat, untried others, where its median is below")
    milvus: MilvusConfig = Field(MilvusConfig(), description="where and how Milvus keeps them, for kind milvus")
    sample_users: int = Field(400, ge=2, description="users whose vectors recall and times are measured with")


@dataclass(frozen=True)
class Planned:
    """An index and what was measured on the way to it, its own trial first."""

    index: SavedIndex
    report: tuple[Trial, ...]


def plan_index(
    vectors: Scores, queries: Scores, config: IndexConfig, *, say: Callable[[str], None] = lambda line: None
) -> Planned:
    """Builds what the config asks for, with the least effort that reaches the recall target.

    Args:
        vectors: (N, D) float32 to be indexed.
        queries: (n, D) float32 vectors of real users to measure with; without any, some of the vectors stand in.
        config: kind, target, memory.
        say: told of every trial.

    Raises:
        BadInput: when the vectors cannot be indexed, or no kind reaches the target within the memory; the message
            says which comes nearest and what it would take.
    """
    refuse_unusable(vectors)
    queries = _asked(vectors, queries, config)
    k = min(config.recall_at, len(vectors))
    if config.kind is IndexKind.MILVUS:
        planned = _tried_milvus(vectors, queries, k, config)
        say(told(planned.report[0]))
        return _best_of(iter([planned]), config, len(vectors))
    asks_flat = config.kind in (AUTO, IndexKind.FLAT)
    flat = _tried_flat(vectors, queries, k, config) if asks_flat else None
    if flat is not None:
        say(told(flat.report[0]))
        in_memory = _fits(flat.report[0].searched_bytes * len(vectors), config)
        if in_memory and (config.kind is IndexKind.FLAT or flat.report[0].p50_ms < config.flat_below_ms):
            return flat
        if config.kind is IndexKind.FLAT:
            raise _none_fits(flat.report, config, len(vectors))
    return _best_of(_trials(vectors, queries, k, config=config, flat=flat, say=say), config, len(vectors))


def plan_again(
    vectors: Scores,
    queries: Scores,
    layout: Layout,
    config: IndexConfig,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Planned:
    """A layout over other vectors than it was chosen for, with the least effort that reaches the target there.

    Where none does it has the effort that finds most, and `say` is told that, too.

    Args:
        vectors, queries: as `plan_index`.
        layout: of an approximate kind.
        config: recall target and sample; the rest is settled by the layout.

    Raises:
        BadInput: when the vectors cannot be indexed.
    """
    refuse_unusable(vectors)
    stored, k = StoredVectors.of(vectors, layout.storage), min(config.recall_at, len(vectors))
    sample = Sample.of(lambda asked, wanted: exact_search(stored, asked, wanted), _asked(vectors, queries, config), k)
    planned = _tried(vectors, layout, sample, config=config, centroids={})
    trial = planned.report[0]
    say(told(trial))
    if trial.recall < config.recall_target:
        say(f"that is less than {config.recall_target:g}: 'python cli.py build-index' looks for a kind that finds more")
    return planned


def _asked(vectors: Scores, queries: Scores, config: IndexConfig) -> Scores:
    """The queries to measure with; where there are hardly any, some of the vectors stand in."""
    if len(queries) < 2:
        queries = vectors[np.random.default_rng(0).choice(len(vectors), min(len(vectors), config.sample_users))]
    return np.ascontiguousarray(queries[: config.sample_users], dtype=np.float32)


def _trials(
    vectors: Scores,
    queries: Scores,
    k: int,
    *,
    config: IndexConfig,
    flat: Planned | None,
    say: Callable[[str], None],
) -> Iterator[Planned]:
    """Builds and measures one kind after another; the flat index comes first."""
    stored = StoredVectors.of(vectors, config.storage)
    exact = flat.index.search if flat else lambda asked, wanted: exact_search(stored, asked, wanted)
    sample = Sample.of(exact, queries, k)
    if flat:
        yield flat
    centroids: dict[int, Scores] = {}
    for layout in _layouts(config, len(vectors), vectors.shape[1]):
        planned = _tried(vectors, layout, sample, config=config, centroids=centroids)
        say(told(planned.report[0]))
        yield planned


def _tried_flat(vectors: Scores, queries: Scores, k: int, config: IndexConfig) -> Planned:
    started = time.perf_counter()
    index = FlatIndex(vectors, config.storage)
    seconds = time.perf_counter() - started
    return Planned(index, (_trial(index, queries, k, recall=1.0, build_seconds=seconds),))


def _tried_milvus(vectors: Scores, queries: Scores, k: int, config: IndexConfig) -> Planned:
    """As it is set up: Milvus's own parameters are not searched for."""
    started = time.perf_counter()
    index = MilvusIndex(vectors, config.milvus)
    seconds = time.perf_counter() - started
    stored = StoredVectors.of(vectors, Storage.FLOAT32)
    sample = Sample.of(lambda asked, wanted: exact_search(stored, asked, wanted), queries, k)
    recall = float(recall_of(index.search(queries, k)[1], sample.rows).mean())
    return Planned(index, (_trial(index, queries, k, recall=recall, build_seconds=seconds),))


def _tried(
    vectors: Scores, layout: Layout, sample: Sample, *, config: IndexConfig, centroids: dict[int, Scores]
) -> Planned:
    """One layout, built and given the least effort that serves; centroids are learnt once for all kinds."""
    started = time.perf_counter()
    index = ApproximateIndex.build(vectors, layout, centroids=centroids.get(layout.lists))
    seconds = time.perf_counter() - started
    if layout.lists:
        centroids[layout.lists] = index.centroids
    chosen_by, reported_by = sample.halves()
    cheapest_effort(index, chosen_by, config.recall_target)
    _, rows = index.search(reported_by.queries, sample.k)
    recall = float(recall_of(rows, reported_by.rows).mean())
    return Planned(index, (_trial(index, reported_by.queries, sample.k, recall=recall, build_seconds=seconds),))


def _trial(index: SavedIndex, queries: Scores, k: int, *, recall: float, build_seconds: float) -> Trial:
    # As it will be searched: on a GPU where there is one and the kind can go there.
    times = times_of(replicated(index), queries, k)
    return Trial(
        layout=index.layout,
        effort=index.effort,
        recall=recall,
        k=k,
        p50_ms=times.p50_ms,
        p99_ms=times.p99_ms,
        queries_per_second=times.queries_per_second,
        searched_bytes=index.searched_bytes,
        kept_bytes=index.layout.kept_bytes(index.dimension),
        build_seconds=build_seconds,
    )


def _layouts(config: IndexConfig, count: int, dimension: int) -> list[Layout]:
    """Those that the config asks for, without kinds that take too long to build or cannot do without vectors."""
    kinds: tuple[IndexKind, ...] = TRIED if config.kind == AUTO else (IndexKind(config.kind),)
    if config.kind == AUTO and count * dimension > GRAPH_UP_TO:
        kinds = tuple(kind for kind in kinds if kind is not IndexKind.HNSW)
    if config.kind == AUTO and not config.keep_vectors:
        kinds = tuple(IndexKind.IVF_PQ if kind is IndexKind.IVF_RABITQ else kind for kind in kinds)
    layouts = [default_layout(kind, count=count, dimension=dimension, storage=config.storage) for kind in kinds]
    layouts = [layout.model_copy(update={"keep_vectors": config.keep_vectors}) for layout in layouts]
    fitting = [layout for layout in layouts if _fits(layout.searched_bytes(dimension) * count, config)]
    # Where nothing fits, the smallest is built all the same: the message then says what it would give.
    return fitting or [min(layouts, key=lambda layout: layout.searched_bytes(dimension))]


def _best_of(trials: Iterator[Planned], config: IndexConfig, count: int) -> Planned:
    """The fastest that reaches the target within the memory, with the whole report."""
    best: Planned | None = None
    report: list[Trial] = []
    for planned in trials:
        trial = planned.report[0]
        report.append(trial)
        good = trial.recall >= config.recall_target and _fits(trial.searched_bytes * count, config)
        if good and (best is None or trial.p50_ms < best.report[0].p50_ms):
            best = planned
    if best is None:
        raise _none_fits(tuple(report), config, count)
    mine = best.report[0]
    return Planned(best.index, (mine, *(trial for trial in report if trial is not mine)))


def _fits(searched: float, config: IndexConfig) -> bool:
    return config.memory_mb is None or searched <= config.memory_mb * MEGABYTE


def _none_fits(report: tuple[Trial, ...], config: IndexConfig, count: int) -> BadInput:
    within = [trial for trial in report if _fits(trial.searched_bytes * count, config)]
    enough = [trial for trial in report if trial.recall >= config.recall_target]
    memory = f" within {config.memory_mb:,.0f} MB" if config.memory_mb is not None else ""
    asked = f"no index of kind {config.kind}" if config.kind != AUTO else "no kind of index"
    ways = []
    if within:
        nearest = max(within, key=lambda trial: trial.recall)
        lower = floor(100 * nearest.recall - 0.5) / 100
        ways.append(f"{nearest.layout.kind} comes nearest with {nearest.recall:.3f}: --recall-target {lower:.2f}")
    if enough:
        smallest = min(enough, key=lambda trial: trial.searched_bytes)
        megabytes = ceil(smallest.searched_bytes * count / MEGABYTE)
        ways.append(f"{smallest.layout.kind} would do it with {megabytes:,.0f} MB: --memory-mb {megabytes}")
    if config.kind is IndexKind.MILVUS and not enough:
        ways.append("a wider search finds more: index.milvus.search, as ef or nprobe")
    if not config.keep_vectors:
        ways.append("with the vectors kept in a file, short codes find more: --set index.keep_vectors=true")
    return BadInput(
        f"{asked} finds {config.recall_target:g} of the best {config.recall_at}{memory}; {'; or '.join(ways)}"
    )


def told(trial: Trial) -> str:
    """A line of the report."""
    layout, effort = trial.layout, trial.effort
    words = [
        f"{layout.kind:<12} recall@{trial.k} {trial.recall:.4f}  p50 {trial.p50_ms:.3f} ms  p99 {trial.p99_ms:.3f} ms"
    ]
    words.append(f"{trial.queries_per_second:,.0f} queries/s  {trial.searched_bytes:.0f} bytes an item")
    if trial.kept_bytes:
        words.append(f"+ {trial.kept_bytes:.0f} mapped")
    words.append(f"built in {trial.build_seconds:.1f} s")
    if layout.lists:
        words.append(f"{min(effort.probes, layout.lists)} of {layout.lists} lists")
    if layout.kind is IndexKind.HNSW:
        words.append(f"{layout.links} links, {effort.walk} in sight")
    if layout.rescores:
        words.append(f"{effort.rescored:g} k scored again")
    return "  ".join(words)
