"""What all kinds of FAISS index share: how a search is checked, grouped and cut, and the folder it is kept in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import Mask, Rows, Scores
from index.layout import FAISS, Effort, IndexKind, Layout
from index.lists import Allowed, nothing, of_length, without_excluded
from index.manifest import FORMAT, IndexManifest, Trial, draw_canaries, write_manifest
from index.stored_vectors import DecodedVectors, StoredVectors, VectorsByRow
from store.errors import BadInput, Mismatch

INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.bin"

BLAS_FROM_QUERIES = 8
"""Batches of this many queries go through BLAS, smaller ones through FAISS's own scan.

Measured on two cores, 384 and 512 dimensions, 1,682 to 50,000 items: the two meet at 4 to 8 queries; at 1
the scan is 3.5 × faster, at 256 BLAS is 2 to 8 × faster. FAISS's own default is 128,000 / D queries.
"""


class FaissIndex(ABC):
    """A filled FAISS index behind the VectorIndex Protocol; subclasses say how the nearest rows are found.

    Args:
        index: trained and filled, by inner product.
        layout: what it was built as.
        effort: how much a search does.
        kept: the vectors beside a quantised index; None: what the index itself can give back.
    """

    def __init__(self, index: Any, layout: Layout, *, effort: Effort, kept: StoredVectors | None = None) -> None:
        self.layout, self.effort = layout, effort
        self._index, self._kept = index, kept
        self._dimension, self._count = int(index.d), int(index.ntotal)
        self._stored: VectorsByRow = DecodedVectors(index) if kept is None else kept

    @property
    def kind(self) -> IndexKind:
        """How the vectors are laid out."""
        return self.layout.kind

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    def __len__(self) -> int:
        return self._count

    @property
    def searched_bytes(self) -> float:
        """Bytes for each vector of what searches go through: codes, links and centroids; ids left out."""
        written = 0

        def count(part: bytes) -> int:
            nonlocal written
            written += len(part)
            return len(part)

        FAISS.write_index(self._index, FAISS.PyCallbackIOWriter(count))
        ids = 8 * self._count if self.layout.lists else 0
        return (written - ids) / self._count

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an index of {self._count:,} vectors")
        return self._stored.take(rows)

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search."""
        self.check_queries(vectors, k, exclude)
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        FAISS.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * self._dimension
        part = None if allowed is None else Allowed.of(allowed, self._count)
        if exclude is None or not any(map(len, exclude)):
            return self._search_alike(queries, k, None, longest=0, allowed=part)
        lengths = np.array([len(rows) for rows in exclude], dtype=np.int64)
        if len(queries) == 1:
            return self._search_alike(queries, k, exclude, longest=int(lengths[0]), allowed=part)
        scores, rows = nothing(len(queries), k)
        # One long history must not make every query of its batch fetch as much: alike lengths go together.
        groups = np.ceil(np.log2(k + lengths)).astype(np.int64)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            excluded = [exclude[int(place)] for place in places]
            longest = int(lengths[places].max())
            scores[places], rows[places] = self._search_alike(
                queries[places], k, excluded, longest=longest, allowed=part
            )
        return scores, rows

    @abstractmethod
    def _nearest(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        """(B, fetch) scores and rows, falling, ties by lower row; `fetch` is at most what is allowed.

        Every place is filled: what excludes rows afterwards counts on it.
        """

    def _search_alike(
        self, queries: Scores, k: int, exclude: Sequence[Rows] | None, *, longest: int, allowed: Allowed | None
    ) -> tuple[Scores, Rows]:
        """Search where no list to exclude is longer than `longest`; fetches as many rows more."""
        fetch = min(k + longest, self._count if allowed is None else allowed.count)
        if fetch == 0 or not len(queries):
            return nothing(len(queries), k)
        scores, rows = self._nearest(queries, fetch, allowed)
        if exclude is not None and longest:
            scores, rows = without_excluded(scores, rows, exclude, size=self._count)
        return of_length(scores, rows, k)

    @property
    def faiss(self) -> Any:
        """FAISS's own index, to be copied and not changed."""
        return self._index

    def candidates_for(self, fetch: int) -> int:
        """How many rows must be found by FAISS's scores for `fetch` settled ones."""
        return min(fetch, self._count)

    def settled(self, queries: Scores, found: tuple[Scores, Rows], fetch: int) -> tuple[Scores, Rows]:
        """The `fetch` best of what FAISS found, with the scores that are handed out."""
        return of_length(*found, fetch)

    def check_queries(self, vectors: Scores, k: int, exclude: Sequence[Rows] | None) -> None:
        """Refuses what cannot be searched, as VectorIndex.search says."""
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

    def save(
        self,
        folder: Path,
        *,
        retriever: str,
        catalog: str,
        report: Sequence[Trial] = (),
    ) -> None:
        """Writes the index and its manifest into an existing folder.

        Args:
            folder: where to; the caller makes the whole folder appear at once.
            retriever: fingerprint of the model that made the vectors.
            catalog: fingerprint of the catalog whose rows they are.
            report: what was measured when the layout was chosen.

        Raises:
            OSError: when the disk refuses the write.
        """
        path = folder / INDEX_FILE
        with path.open("wb") as file:
            # Through Python's file, not FAISS's: FAISS loses the error of a full disk on close.
            FAISS.write_index(self._index, FAISS.PyCallbackIOWriter(file.write))
        if self._kept is not None:
            self._kept.write(folder / VECTORS_FILE)
        manifest = IndexManifest(
            format=FORMAT,
            kind=self.kind,
            metric="inner_product",
            dimension=self.dimension,
            count=len(self),
            bytes=path.stat().st_size,
            layout=self.layout,
            effort=self.effort,
            faiss=FAISS.__version__,
            retriever=retriever,
            catalog=catalog,
            canaries=draw_canaries(self),
            report=tuple(report),
        )
        write_manifest(folder, manifest)


def refuse_unusable(vectors: Scores) -> None:
    """Raises BadInput when there are no vectors, or some hold NaN or infinity."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise BadInput(f"an index needs (items, dimension) vectors, found shape {vectors.shape}")
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        first = ", ".join(map(str, broken[:5]))
        raise BadInput(
            f"{len(broken):,} of {len(vectors):,} item vectors hold NaN or infinity (first rows: {first}); "
            "the model that made them has diverged: train it again with a lower learning rate"
        )
