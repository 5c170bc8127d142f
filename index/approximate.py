"""Approximate kinds: lists around centroids, and graphs; where codes are short, the best are scored once more."""

from math import ceil
from typing import Any, Self

import numpy as np

from data.schema import NO_ITEM, Rows, Scores
from index.checks import refuse_unusable
from index.faiss_base import BLAS_FROM_QUERIES, FaissIndex
from index.layout import (
    FAISS,
    GRAPH_OVER_LISTS,
    QUANTISED,
    TRAINING_POINTS,
    Effort,
    IndexKind,
    Layout,
    default_layout,
    empty_index,
)
from index.lists import Allowed, exact_search, in_order, nothing
from index.stored_vectors import StoredVectors
from store.errors import BadInput

SCANNED_FOR_EACH = 4
"""So many vectors are scanned for each that is wanted, at least: fewer would leave lists unfilled."""

EXACT_SHARE = 4
"""Where more than one vector in so many is wanted, all are scored."""

TRAINING_SEED = 20_140_723

LEAST_TRAINING = 1_024
"""A product code has up to 256 words, and FAISS refuses to learn more than it is shown."""


class ApproximateIndex(FaissIndex):
    """Every kind but the flat one. What it cannot find by its short cuts it finds by scoring everything."""

    def __init__(self, index: Any, layout: Layout, *, effort: Effort, kept: StoredVectors | None = None) -> None:
        super().__init__(index, layout, effort=effort, kept=kept)
        self._centroids = FAISS.downcast_index(index.quantizer) if layout.lists >= GRAPH_OVER_LISTS else None
        self.set_effort(effort)

    @classmethod
    def of_kind(cls, kind: IndexKind, vectors: Scores) -> Self:
        """An index of one kind with the layout that suits (N, D) float32 vectors.

        Raises:
            BadInput: as `build`.
        """
        refuse_unusable(vectors)
        return cls.build(vectors, default_layout(kind, count=len(vectors), dimension=vectors.shape[1]))

    @classmethod
    def build(
        cls, vectors: Scores, layout: Layout, *, effort: Effort | None = None, centroids: Scores | None = None
    ) -> Self:
        """An index of vectors (N, D) float32.

        Args:
            centroids: (lists, D), where they are known already.

        Raises:
            BadInput: when there are no vectors, some are not finite, or an estimating kind is to keep none.
        """
        refuse_unusable(vectors)
        sample = training_sample(vectors, layout)
        index = trained(layout, sample, centroids=centroids)
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        kept = StoredVectors.of(vectors, layout.storage) if layout.kind in QUANTISED and layout.keep_vectors else None
        return cls(index, layout, effort=effort or Effort(), kept=kept)

    @property
    def centroids(self) -> Scores:
        """(lists, D) float32 around which the lists are."""
        return np.asarray(self._index.quantizer.reconstruct_n(0, self.layout.lists), dtype=np.float32)

    def set_effort(self, effort: Effort) -> None:
        """Changes how much a search does from now on."""
        self.effort = effort
        if self.kind is IndexKind.HNSW:
            self._index.hnsw.efSearch = effort.walk
        else:
            self._set_probes(min(effort.probes, self.layout.lists))

    def _set_probes(self, probes: int) -> None:
        self._index.nprobe = probes
        if self._centroids is not None:
            self._centroids.hnsw.efSearch = max(64, 2 * probes)

    def _nearest(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        there = self._count if allowed is None else allowed.count
        if fetch * EXACT_SHARE > there or (allowed is not None and there < self.effort.exact_below):
            return self.exact(queries, fetch, allowed)
        scores, rows = self._found(queries, fetch, allowed)
        short = rows[:, -1] == NO_ITEM
        if short.any():
            scores[short], rows[short] = self.exact(queries[short], fetch, allowed)
        return scores, rows

    def exact(self, queries: Scores, fetch: int, allowed: Allowed | None = None) -> tuple[Scores, Rows]:
        """The same by scoring every allowed vector as it is stored."""
        return exact_search(self._stored, queries, fetch, rows=None if allowed is None else allowed.rows)

    def _found(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        """What the short cuts find, possibly fewer than wanted."""
        there = self._count if allowed is None else allowed.count
        wide = min(self.candidates_for(fetch), there)
        found = self.candidates(queries, wide, params=self._params(fetch, allowed))
        return self.settled(queries, found, fetch)

    def candidates_for(self, fetch: int) -> int:
        """See FaissIndex.candidates_for."""
        return min(ceil(fetch * self.effort.rescored), self._count) if self.layout.rescores else fetch

    def settled(self, queries: Scores, found: tuple[Scores, Rows], fetch: int) -> tuple[Scores, Rows]:
        """See FaissIndex.settled."""
        return self.rescored(queries, found[1], fetch) if self.layout.rescores else in_order(*found)

    def candidates(self, queries: Scores, wide: int, *, params: Any = None) -> tuple[Scores, Rows]:
        """(B, wide) best by the index's own scores, which may be estimates; without parameters, by its effort."""
        FAISS.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * self._dimension
        scores, rows = self._index.search(queries, wide, params=params)
        scores[rows == NO_ITEM] = -np.inf
        return scores, rows

    def rescored(self, queries: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
        """The k best of candidates (B, W) by the stored vectors."""
        best_scores, best_rows = nothing(len(queries), k)
        for place, query in enumerate(queries):
            there = rows[place] if rows[place, -1] != NO_ITEM else rows[place, rows[place] != NO_ITEM]
            scores = self._stored.take(there) @ query
            order = np.argsort(-scores, kind="stable")[:k]
            best_scores[place, : len(order)] = scores[order]
            best_rows[place, : len(order)] = there[order]
        return in_order(best_scores, best_rows)

    def _params(self, fetch: int, allowed: Allowed | None) -> Any:
        """FAISS's parameters where the usual effort is not enough: a filter, or long lists; else None."""
        there = self._count if allowed is None else allowed.count
        selector: dict[str, Any] = {} if allowed is None else {"sel": allowed.selector}
        wider = (self._count / there) ** self.effort.widening
        if self.kind is IndexKind.HNSW:
            walk = min(self._count, ceil(max(self.effort.walk, fetch) * wider))
            if walk == self.effort.walk and allowed is None:
                return None
            return FAISS.SearchParametersHNSW(efSearch=walk, **selector)
        lists = self.layout.lists
        probes = ceil(max(self.effort.probes * wider, SCANNED_FOR_EACH * fetch * lists / there))
        if probes <= self.effort.probes and allowed is None:
            return None
        probes = min(lists, probes)
        if self._centroids is not None:
            selector["quantizer_params"] = FAISS.SearchParametersHNSW(efSearch=max(64, 2 * probes))
        return FAISS.SearchParametersIVF(nprobe=probes, **selector)


def training_sample(vectors: Scores, layout: Layout) -> Scores:
    """The vectors that centroids and codes are learnt from."""
    wanted = max(layout.lists, LEAST_TRAINING) * TRAINING_POINTS
    if len(vectors) < LEAST_TRAINING:
        vectors = np.tile(vectors, (-(-LEAST_TRAINING // len(vectors)), 1))
    elif len(vectors) > wanted:
        rows = np.random.default_rng(TRAINING_SEED).choice(len(vectors), wanted, replace=False)
        vectors = vectors[np.sort(rows)]
    return np.ascontiguousarray(vectors, dtype=np.float32)


def trained(layout: Layout, sample: Scores, *, centroids: Scores | None = None) -> Any:
    """FAISS's index of a layout, trained on (n, D) float32 vectors, empty.

    Raises:
        BadInput: when a kind whose codes cannot give vectors back is to keep none.
    """
    if layout.kind is IndexKind.IVF_RABITQ and not layout.keep_vectors:
        raise BadInput(f"{layout.kind} finds candidates only: keep the vectors (index.keep_vectors) or take ivf-pq")
    index = empty_index(layout, sample.shape[1])
    if centroids is not None and layout.lists:
        index.quantizer.train(centroids)
        index.quantizer.add(centroids)
    # By FAISS's own threshold, short vectors such as those of a product code never reach BLAS: some 10 × slower.
    FAISS.cvar.distance_compute_blas_threshold = 0
    index.train(sample)
    return index
