"""What all kinds of FAISS index share: their vectors, and the folder they are kept in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.schema import Mask, Rows, Scores
from index.checks import check_rows
from index.grouped import GroupedIndex
from index.layout import FAISS, Effort, IndexKind, Layout
from index.lists import of_length
from index.manifest import FORMAT, METRIC, IndexManifest, Trial, draw_canaries, write_manifest
from index.stored_vectors import DecodedVectors, StoredVectors, VectorsByRow

INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.bin"

BLAS_FROM_QUERIES = 8
"""Batches of this many queries go through BLAS, smaller ones through FAISS's own scan.

Measured on two cores, 384 and 512 dimensions, 1,682 to 50,000 items: the two meet at 4 to 8 queries; at 1
the scan is 3.5 × faster, at 256 BLAS is 2 to 8 × faster. FAISS's own default is 128,000 / D queries.
"""


class FaissIndex(GroupedIndex):
    """A filled FAISS index behind the VectorIndex Protocol; subclasses say how the nearest rows are found.

    Args:
        index: trained and filled, by inner product.
        layout: what it was built as.
        effort: how much a search does.
        kept: the vectors beside a quantised index; None: what the index itself can give back.
    """

    def __init__(self, index: Any, layout: Layout, *, effort: Effort, kept: StoredVectors | None = None) -> None:
        super().__init__(int(index.ntotal), int(index.d))
        self.layout, self.effort = layout, effort
        self._index, self._kept = index, kept
        self._stored: VectorsByRow = DecodedVectors(index) if kept is None else kept

    @property
    def kind(self) -> IndexKind:
        """How the vectors are laid out."""
        return self.layout.kind

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
        check_rows(self, rows)
        return self._stored.take(rows)

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search."""
        FAISS.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * self._dimension
        return super().search(vectors, k, exclude=exclude, allowed=allowed)

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
            metric=METRIC,
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
