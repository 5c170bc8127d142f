"""How vectors are laid out for search, how much a search does, and FAISS's empty index of a layout."""

from enum import StrEnum
from math import log2
from typing import Any

import faiss as _faiss
from pydantic import BaseModel, ConfigDict, Field

from index.stored_vectors import Storage

FAISS: Any = _faiss
"""Without its stub, which lacks the classes of search parameters and of writers."""


class IndexKind(StrEnum):
    """How vectors are laid out for search."""

    FLAT = "flat"
    """every query meets every vector: exact"""
    HNSW = "hnsw"
    """a graph of neighbours that a search walks along"""
    IVF_FLAT = "ivf-flat"
    """lists around centroids; a search scans the nearest of them"""
    IVF_SQ8 = "ivf-sq8"
    """the same with a byte a dimension"""
    IVF_PQ = "ivf-pq"
    """the same with product-quantised codes, a byte for some dimensions"""
    IVF_FASTSCAN = "ivf-fastscan"
    """the same with four bits for some dimensions, scanned 32 vectors at a time in registers"""
    IVF_RABITQ = "ivf-rabitq"
    """the same with a bit a dimension"""
    MILVUS = "milvus"
    """a collection of a Milvus server, laid out by its own settings"""


QUANTISED = frozenset({IndexKind.IVF_SQ8, IndexKind.IVF_PQ, IndexKind.IVF_FASTSCAN, IndexKind.IVF_RABITQ})
"""Kinds that hold less than the vectors; with the vectors beside them they score their best candidates again."""

INVERTED = QUANTISED | {IndexKind.IVF_FLAT}
"""Kinds of lists around centroids."""

ESTIMATING = frozenset({IndexKind.IVF_FASTSCAN, IndexKind.IVF_RABITQ})
"""Kinds whose own scores are estimates, not inner products with anything that they hold."""

GRAPH_OVER_LISTS = 8_192
"""From this many lists on, the nearest centroids are found by a graph, too."""

TRAINING_POINTS = 48
"""Vectors for each centroid in training; FAISS asks for 39 at least, and 256 gain nothing that is measured."""


class Layout(BaseModel):
    """What is decided when an index is built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: IndexKind = Field(IndexKind.FLAT, description="how vectors are laid out")
    storage: Storage = Field(Storage.FLOAT32, description="precision of the vectors that are kept")
    keep_vectors: bool = Field(True, description="a quantised kind keeps the vectors beside it and rescores by them")
    lists: int = Field(0, ge=0, description="lists around centroids; 0: the kind has none")
    parts: int = Field(0, ge=0, description="of a vector, each with a product code of its own; 0: the kind has none")
    links: int = Field(0, ge=0, description="neighbours of each vector in a graph; 0: the kind has none")
    build_effort: int = Field(100, ge=1, description="neighbours weighed when a vector joins a graph")

    @property
    def rescores(self) -> bool:
        """Whether the best candidates of a search are scored once more."""
        return self.kind in ESTIMATING or (self.kind in QUANTISED and self.keep_vectors)

    def searched_bytes(self, dimension: int) -> float:
        """Predicted bytes for each vector of what a search goes through, ids left out."""
        return _code_bytes(self, dimension) + 8 * self.links * (1 if self.kind is IndexKind.HNSW else 0)

    def kept_bytes(self, dimension: int) -> float:
        """Bytes for each vector of a file beside the index, mapped and touched for the best candidates only."""
        return dimension * self.storage.bytes if self.kind in QUANTISED and self.keep_vectors else 0


class Effort(BaseModel):
    """How much a search does; can be changed without building anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probes: int = Field(16, ge=1, description="lists that are scanned")
    walk: int = Field(128, ge=1, description="vectors of a graph that are kept in sight (efSearch), at least k")
    rescored: float = Field(4.0, ge=1, description="candidates scored once more, as a multiple of k")
    widening: float = Field(
        1.0,
        ge=0,
        le=1,
        description="a filter that leaves a share of the vectors multiplies lists or walk by share^-this",
    )
    exact_below: int = Field(
        2_000, ge=0, description="where a filter leaves fewer vectors than this, all of them are scored instead"
    )


def empty_index(layout: Layout, dimension: int) -> Any:
    """FAISS's index of a layout, to be trained and filled."""
    metric = FAISS.METRIC_INNER_PRODUCT
    if layout.kind is IndexKind.FLAT:
        if layout.storage is Storage.FLOAT32:
            return FAISS.IndexFlatIP(dimension)
        return FAISS.index_factory(dimension, _SCALARS[layout.storage], metric)
    if layout.kind is IndexKind.HNSW:
        index = FAISS.index_factory(dimension, f"HNSW{layout.links},{_SCALARS[layout.storage]}", metric)
        index.hnsw.efConstruction = layout.build_effort
        return index
    coarse = f"IVF{layout.lists}_HNSW32" if layout.lists >= GRAPH_OVER_LISTS else f"IVF{layout.lists}"
    index = FAISS.index_factory(dimension, f"{coarse},{_code_name(layout)}", metric)
    index.cp.max_points_per_centroid = TRAINING_POINTS
    index.cp.niter = 10
    for part in (index, index.pq) if hasattr(index, "pq") else (index,):
        part.cp.min_points_per_centroid = 1  # our samples are as large as they can be: no warning
    return index


def default_layout(kind: IndexKind, *, count: int, dimension: int, storage: Storage = Storage.FLOAT32) -> Layout:
    """The layout of a kind that suits (count, dimension) vectors.

    Lists grow with the square root of the catalog: a search then weighs as many centroids as vectors.
    """
    if kind is IndexKind.FLAT:
        return Layout(kind=kind, storage=storage)
    if kind is IndexKind.HNSW:
        return Layout(kind=kind, storage=storage, links=24)
    lists = max(1, min(count // 39, 2 ** round(log2(max(1.0, 3 * count**0.5)))))
    return Layout(kind=kind, storage=storage, lists=lists, parts=default_parts(kind, dimension))


def default_parts(kind: IndexKind, dimension: int) -> int:
    """A quarter of a byte for each dimension, or less where the dimension does not divide; 0 for other codes.

    With four bits for a part that is two dimensions a part, with eight four.
    """
    dimensions_of_part = {IndexKind.IVF_FASTSCAN: 2, IndexKind.IVF_PQ: 4}.get(kind)
    if dimensions_of_part is None:
        return 0
    return next(parts for parts in range(max(1, dimension // dimensions_of_part), 0, -1) if dimension % parts == 0)


_SCALARS = {Storage.FLOAT32: "Flat", Storage.FLOAT16: "SQfp16", Storage.BFLOAT16: "SQbf16"}


def _code_name(layout: Layout) -> str:
    """The code's name in FAISS's factory."""
    if layout.kind is IndexKind.IVF_FLAT:
        return _SCALARS[layout.storage]
    return {
        IndexKind.IVF_SQ8: "SQ8",
        # np: words are not reordered for Hamming distances, which nobody asks for and takes half a minute.
        IndexKind.IVF_PQ: f"PQ{layout.parts}np",
        IndexKind.IVF_FASTSCAN: f"PQ{layout.parts}x4fs",
        IndexKind.IVF_RABITQ: "RaBitQfs",
    }[layout.kind]


def _code_bytes(layout: Layout, dimension: int) -> float:
    if layout.kind is IndexKind.IVF_SQ8:
        return dimension
    if layout.kind is IndexKind.IVF_PQ:
        return layout.parts
    if layout.kind is IndexKind.IVF_FASTSCAN:
        return (layout.parts + 1) // 2
    if layout.kind is IndexKind.IVF_RABITQ:
        return dimension / 8 + 12
    return dimension * layout.storage.bytes
