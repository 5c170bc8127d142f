"""FAISS behind the VectorIndex Protocol, and the folder that an index is kept in."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import numpy.typing as npt

from data.schema import NO_ITEM, Mask, Rows, Scores
from index.manifest import IndexManifest, check_canaries, draw_canaries, read_manifest, write_manifest
from store.errors import BadInput, CorruptArtifact, Mismatch

INDEX_FILE = "index.faiss"

BLAS_FROM_QUERIES = 8
"""Batches of this many queries go through BLAS, smaller ones through FAISS's own scan.

Measured on two cores, 384 and 512 dimensions, 1,682 to 50,000 items: the two meet at 4 to 8 queries; at 1
the scan is 3.5 × faster, at 256 BLAS is 2 to 8 × faster. FAISS's own default is 128,000 / D queries.
"""


class IndexKind(StrEnum):
    """How vectors are laid out for search."""

    FLAT = "flat"


class FlatIndex:
    """Exact search: every query is compared with every vector.

    Args:
        vectors: (N, D) float32, N ≥ 1; row n is the vector of item row n.

    Raises:
        BadInput: when there are no vectors, or some hold NaN or infinity.
    """

    kind = IndexKind.FLAT

    def __init__(self, vectors: Scores) -> None:
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise BadInput(f"an index needs (items, dimension) vectors, found shape {vectors.shape}")
        _refuse_broken(vectors)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self._adopt(index)

    def _adopt(self, index: Any) -> None:
        self._index = index
        self._dimension = int(index.d)
        self._count = int(index.ntotal)

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    def __len__(self) -> int:
        return self._count

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an index of {self._count:,} vectors")
        return np.asarray(self._index.reconstruct_batch(rows), dtype=np.float32)

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search; exact, so an excluded row never costs a place."""
        self._check_queries(vectors, k, exclude)
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if allowed is not None:
            return self._search_allowed(queries, k, exclude, allowed)
        faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * self._dimension
        if exclude is None or not any(map(len, exclude)):
            return self._search_alike(queries, k, None, 0)
        lengths = np.array([len(rows) for rows in exclude], dtype=np.int64)
        if len(queries) == 1:
            return self._search_alike(queries, k, exclude, int(lengths[0]))
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), NO_ITEM, dtype=np.int64)
        # One long history must not make every query of its batch fetch as much: alike lengths go together.
        groups = np.ceil(np.log2(k + lengths)).astype(np.int64)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            excluded = [exclude[int(place)] for place in places]
            found = self._search_alike(queries[places], k, excluded, int(lengths[places].max()))
            scores[places], rows[places] = found
        return scores, rows

    def _search_allowed(
        self, queries: Scores, k: int, exclude: Sequence[Rows] | None, allowed: Mask
    ) -> tuple[Scores, Rows]:
        """Search among the allowed rows alone, as an index of their own."""
        if allowed.ndim != 1 or allowed.dtype != np.bool_:
            raise ValueError(f"allowed is {allowed.dtype} of shape {allowed.shape}, it must be (N,) bool")
        there = np.flatnonzero(allowed[: self._count])
        if not len(there):
            shape = (len(queries), k)
            return np.full(shape, -np.inf, dtype=np.float32), np.full(shape, NO_ITEM, dtype=np.int64)
        part = FlatIndex(self.vectors(there))
        if exclude is not None:
            exclude = [np.flatnonzero(np.isin(there, rows)) for rows in exclude]
        scores, places = part.search(queries, k, exclude=exclude)
        return scores, np.where(places == NO_ITEM, NO_ITEM, there[places])

    def save(self, folder: Path, *, retriever: str, catalog: str) -> None:
        """Writes the index and its manifest into an existing folder.

        Args:
            folder: where to; the caller makes the whole folder appear at once.
            retriever: fingerprint of the model that made the vectors.
            catalog: fingerprint of the catalog whose rows they are.

        Raises:
            OSError: when the disk refuses the write.
        """
        path = folder / INDEX_FILE
        with path.open("wb") as file:
            # Through Python's file, not FAISS's: FAISS loses the error of a full disk on close.
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]  # not in its stub
            faiss.write_index(self._index, writer)
        manifest = IndexManifest(
            kind=self.kind,
            metric="inner_product",
            dimension=self.dimension,
            count=len(self),
            bytes=path.stat().st_size,
            faiss=faiss.__version__,
            retriever=retriever,
            catalog=catalog,
            canaries=draw_canaries(self),
        )
        write_manifest(folder, manifest)

    @classmethod
    def load(cls, folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> Self:
        """The index saved in a folder, memory-mapped: pages are read when first searched.

        Args:
            folder: as given to `save`.
            retriever: the fingerprint that the index must have been made with; None: any.
            catalog: likewise for the catalog.

        Raises:
            MissingStep: when the folder holds no index.
            CorruptArtifact: when a file is truncated or altered, or the canaries find other rows.
            Mismatch: when the index belongs to another retriever or catalog.
        """
        manifest = read_manifest(folder)
        manifest.check_fingerprints(folder, retriever=retriever, catalog=catalog)
        loaded = cls.__new__(cls)
        loaded._adopt(_read_faiss(folder / INDEX_FILE, manifest.bytes))
        if (len(loaded), loaded.dimension) != (manifest.count, manifest.dimension):
            raise CorruptArtifact(
                f"{folder / INDEX_FILE} holds {len(loaded):,} vectors of dimension {loaded.dimension}, its "
                f"manifest says {manifest.count:,} of {manifest.dimension}: run 'python cli.py build-index'"
            )
        check_canaries(loaded, manifest.canaries, folder)
        return loaded

    def _check_queries(self, vectors: Scores, k: int, exclude: Sequence[Rows] | None) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension:
            raise Mismatch(
                f"index has dimension {self._dimension}, the vectors have {vectors.shape[-1]}: they come from "
                "different models; run 'python cli.py build-index' again"
            )
        if k < 1:
            raise ValueError(f"k is {k}, it must be at least 1")
        if exclude is not None and len(exclude) != len(vectors):
            raise ValueError(f"{len(vectors)} queries but {len(exclude)} lists to exclude")
        if not np.isfinite(vectors).all():
            raise ValueError("a query vector holds NaN or infinity")

    def _search_alike(
        self, queries: Scores, k: int, exclude: Sequence[Rows] | None, longest: int
    ) -> tuple[Scores, Rows]:
        """Search where no list to exclude is longer than `longest`; fetches as many rows more."""
        # One row more than needed tells whether the last place is tied with rows that FAISS left out.
        fetch = min(k + longest + 1, self._count)
        scores, rows = self._index.search(queries, fetch)
        if fetch < self._count and (tied := scores[:, -1] == scores[:, -2]).any():
            scores, rows = self._widen_ties(queries, fetch, scores, rows, tied)
        if (scores[:, 1:] == scores[:, :-1]).any():
            order = np.lexsort((rows, -scores), axis=-1)
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        if exclude is not None and longest:
            scores, rows = _drop_excluded(scores, rows, exclude, self._count)
        return _exactly(scores, rows, k)

    def _widen_ties(
        self, queries: Scores, fetch: int, scores: Scores, rows: Rows, tied: npt.NDArray[np.bool_]
    ) -> tuple[Scores, Rows]:
        """Fetches on for the `tied` queries until the tie at their last place has ended, then cuts to `fetch`.

        Which of several equal rows FAISS returns is an accident of its heap; the lowest ones are promised.
        """
        scores, rows = scores.copy(), rows.copy()
        waiting, wider = np.flatnonzero(tied), fetch
        while len(waiting):
            wider = min(2 * wider, self._count)
            more_scores, more_rows = self._index.search(queries[waiting], wider)
            ended = (more_scores[:, -1] < more_scores[:, fetch - 1]) | (wider == self._count)
            order = np.lexsort((more_rows[ended], -more_scores[ended]), axis=-1)[:, :fetch]
            scores[waiting[ended]] = np.take_along_axis(more_scores[ended], order, 1)
            rows[waiting[ended]] = np.take_along_axis(more_rows[ended], order, 1)
            waiting = waiting[~ended]
        return scores, rows


INDEXES: dict[IndexKind, type[FlatIndex]] = {IndexKind.FLAT: FlatIndex}


def load_index(folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> FlatIndex:
    """The index in a folder, of whichever kind its manifest names; arguments and errors as FlatIndex.load."""
    kind = read_manifest(folder).kind
    if kind not in INDEXES:
        raise Mismatch(f"{folder} holds an index of kind {kind!r}, this version knows {', '.join(INDEXES)}")
    return INDEXES[IndexKind(kind)].load(folder, retriever=retriever, catalog=catalog)


def _read_faiss(path: Path, expected_bytes: int) -> Any:
    found = path.stat().st_size if path.is_file() else 0
    # The size is compared before mapping: reading beyond the end of a mapped file kills the process.
    if found != expected_bytes:
        raise CorruptArtifact(
            f"{path} has {found:,} bytes, its manifest says {expected_bytes:,}: run 'python cli.py build-index'"
        )
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptArtifact(f"{path} is not a readable FAISS index: run 'python cli.py build-index'") from error


def _refuse_broken(vectors: Scores) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        first = ", ".join(map(str, broken[:5]))
        raise BadInput(
            f"{len(broken):,} of {len(vectors):,} item vectors hold NaN or infinity (first rows: {first}); "
            "the model that made them has diverged: train it again with a lower learning rate"
        )


def _drop_excluded(scores: Scores, rows: Rows, exclude: Sequence[Rows], count: int) -> tuple[Scores, Rows]:
    """The same lists with excluded rows replaced by NO_ITEM and moved behind all others."""
    if len(exclude) == 1:
        dropped = np.isin(rows, exclude[0])
    else:
        lists = np.repeat(np.arange(len(exclude), dtype=np.int64), [len(known) for known in exclude])
        known = np.concatenate(exclude)
        inside = (known >= 0) & (known < count)
        dropped = np.isin(rows + np.arange(len(rows))[:, None] * count, (known + lists * count)[inside])
    order = np.argsort(dropped, axis=1, kind="stable")
    scores = np.where(dropped, np.float32(-np.inf), scores)
    rows = np.where(dropped, NO_ITEM, rows)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _exactly(scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
    missing = k - scores.shape[1]
    if missing <= 0:
        return scores[:, :k], rows[:, :k]
    return (
        np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(rows, ((0, 0), (0, missing)), constant_values=NO_ITEM),
    )
