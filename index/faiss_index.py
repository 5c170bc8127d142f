"""FAISS behind the VectorIndex Protocol: exact search, every kind by name, and an index opened from its folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from data.schema import Mask, Rows, Scores
from index.approximate import ApproximateIndex
from index.checks import refuse_unusable
from index.faiss_base import INDEX_FILE, VECTORS_FILE, FaissIndex
from index.layout import FAISS, QUANTISED, Effort, IndexKind, Layout, empty_index
from index.lists import Allowed, exact_search, in_order
from index.manifest import METRIC, IndexManifest, check_canaries, read_manifest
from index.milvus_index import MilvusIndex
from index.stored_vectors import Storage, StoredVectors
from store.errors import CorruptArtifact, Mismatch

ALLOWED_ONE_IN = 50
"""Where a filter leaves fewer than one vector in so many, gathering them is faster than a scan past all others."""

BATCH = 8
"""From this many queries on, the vectors that a filter leaves are gathered once for all of them."""


class FlatIndex(FaissIndex):
    """Exact search: every query is compared with every vector.

    Args:
        vectors: (N, D) float32, N ≥ 1; row n is the vector of item row n.
        storage: what the vectors are rounded to.

    Raises:
        BadInput: when there are no vectors, or some hold NaN or infinity.
    """

    def __init__(self, vectors: Scores, storage: Storage = Storage.FLOAT32) -> None:
        refuse_unusable(vectors)
        layout = Layout(kind=IndexKind.FLAT, storage=storage)
        index = empty_index(layout, vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        super().__init__(index, layout, effort=Effort())

    @classmethod
    def adopting(cls, index: Any, layout: Layout) -> Self:
        """One around a filled FAISS index."""
        adopted = cls.__new__(cls)
        FaissIndex.__init__(adopted, index, layout, effort=Effort())
        return adopted

    @classmethod
    def load(cls, folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> "SavedIndex":
        """As `load_index`."""
        return load_index(folder, retriever=retriever, catalog=catalog)

    def _nearest(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        if allowed is not None and (len(queries) >= BATCH or allowed.count * ALLOWED_ONE_IN < self._count):
            return exact_search(self._stored, queries, fetch, rows=allowed.rows)
        search = self._index.search
        if allowed is not None:
            search = partial(search, params=FAISS.SearchParameters(sel=allowed.selector))
        there = self._count if allowed is None else allowed.count
        # One row more than needed tells whether the last place is tied with rows that FAISS left out.
        wider = min(fetch + 1, there)
        scores, rows = search(queries, wider)
        if wider < there and (tied := scores[:, -1] == scores[:, -2]).any():
            scores, rows = _widen_ties(search, queries, (scores, rows), tied=tied, there=there)
        scores, rows = in_order(scores, rows)
        return scores[:, :fetch], rows[:, :fetch]


def _widen_ties(
    search: Callable[[Scores, int], tuple[Scores, Rows]],
    queries: Scores,
    found: tuple[Scores, Rows],
    *,
    tied: Mask,
    there: int,
) -> tuple[Scores, Rows]:
    """Fetches on for the `tied` queries until the tie at their last place has ended, then cuts to the width found.

    Which of several equal rows FAISS returns is an accident of its heap; the lowest ones are promised.
    """
    scores, rows = found[0].copy(), found[1].copy()
    fetch = wider = scores.shape[1]
    waiting = np.flatnonzero(tied)
    while len(waiting):
        wider = min(2 * wider, there)
        more_scores, more_rows = search(queries[waiting], wider)
        ended = (more_scores[:, -1] < more_scores[:, fetch - 1]) | (wider == there)
        order = np.lexsort((more_rows[ended], -more_scores[ended]), axis=-1)[:, :fetch]
        scores[waiting[ended]] = np.take_along_axis(more_scores[ended], order, 1)
        rows[waiting[ended]] = np.take_along_axis(more_rows[ended], order, 1)
        waiting = waiting[~ended]
    return scores, rows


SavedIndex = FaissIndex | MilvusIndex
"""What has a folder of its own."""

INDEXES: dict[IndexKind, Callable[[Scores], SavedIndex]] = {
    **{kind: partial(ApproximateIndex.of_kind, kind) for kind in IndexKind},
    IndexKind.FLAT: FlatIndex,
    IndexKind.MILVUS: MilvusIndex,
}
"""How an index of each kind is made from (N, D) vectors, with settings that suit their number."""


def load_index(folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> SavedIndex:
    """The index saved in a folder, of whichever kind, memory-mapped: pages are read when first searched.

    Args:
        folder: as given to `FaissIndex.save`.
        retriever: the fingerprint that the index must have been made with; None: any.
        catalog: likewise for the catalog.

    Raises:
        MissingStep: when the folder holds no index.
        CorruptArtifact: when a file is truncated or altered, or the canaries find other rows.
        Mismatch: when the index belongs to another retriever or catalog, maximises something else than the inner
            product, or a newer version wrote it.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in INDEXES:
        raise Mismatch(f"{folder} holds an index of kind {manifest.kind!r}, this version knows {', '.join(INDEXES)}")
    if manifest.metric != METRIC:
        raise _other_metric(folder, manifest.metric)
    manifest.check_fingerprints(folder, retriever=retriever, catalog=catalog)
    if manifest.kind == IndexKind.MILVUS:
        return MilvusIndex.load(folder, manifest)
    index = _read_faiss(folder / INDEX_FILE, manifest.bytes)
    if (index.ntotal, index.d) != (manifest.count, manifest.dimension):
        raise CorruptArtifact(
            f"{folder / INDEX_FILE} holds {index.ntotal:,} vectors of dimension {index.d}, its "
            f"manifest says {manifest.count:,} of {manifest.dimension}: run 'python cli.py build-index'"
        )
    if index.metric_type != FAISS.METRIC_INNER_PRODUCT:
        raise _other_metric(folder, f"FAISS's metric {index.metric_type}")
    loaded = _adopted(index, manifest, folder)
    check_canaries(loaded, manifest.canaries, folder)
    return loaded


def _other_metric(folder: Path, found: str) -> Mismatch:
    return Mismatch(
        f"the index in {folder} searches by {found}, the towers' vectors want {METRIC}: run 'python cli.py build-index'"
    )


def _adopted(index: Any, manifest: IndexManifest, folder: Path) -> FaissIndex:
    layout = manifest.layout
    if layout.kind is IndexKind.FLAT:
        return FlatIndex.adopting(index, layout)
    kept = None
    if layout.kind in QUANTISED and layout.keep_vectors:
        shape = (manifest.count, manifest.dimension)
        kept = StoredVectors.mapped(folder / VECTORS_FILE, layout.storage, shape=shape)
    return ApproximateIndex(index, layout, effort=manifest.effort, kept=kept)


def _read_faiss(path: Path, expected_bytes: int) -> Any:
    found = path.stat().st_size if path.is_file() else 0
    # The size is compared before mapping: reading beyond the end of a mapped file kills the process.
    if found != expected_bytes:
        raise CorruptArtifact(
            f"{path} has {found:,} bytes, its manifest says {expected_bytes:,}: run 'python cli.py build-index'"
        )
    try:
        return FAISS.read_index(str(path), FAISS.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptArtifact(f"{path} is not a readable FAISS index: run 'python cli.py build-index'") from error
