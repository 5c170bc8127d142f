"""What every index refuses: queries that it cannot search by, vectors that cannot be searched."""

from collections.abc import Sequence

import numpy as np

from data.schema import Rows, Scores
from index.base import VectorIndex
from store.errors import BadInput, Mismatch


def check_queries(index: VectorIndex, vectors: Scores, k: int, exclude: Sequence[Rows] | None) -> None:
    """Raises what VectorIndex.search promises for its arguments; `Allowed.of` looks at the mask."""
    if vectors.ndim != 2 or vectors.shape[1] != index.dimension:
        raise Mismatch(
            f"index has dimension {index.dimension}, the vectors have {vectors.shape[-1]}: they come from "
            "different models; run 'python cli.py build-index' again"
        )
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    if exclude is not None and len(exclude) != len(vectors):
        raise ValueError(f"{len(vectors)} queries but {len(exclude)} lists to exclude")
    if not np.isfinite(vectors).all():
        raise ValueError("a query vector holds NaN or infinity")


def check_rows(index: VectorIndex, rows: Rows) -> None:
    """Raises what VectorIndex.vectors promises."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(index):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of an index of {len(index):,} vectors")


def refuse_unusable(vectors: Scores) -> None:
    """Raises BadInput when there are no vectors, or some hold NaN or infinity; zero vectors can be searched."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise BadInput(f"an index needs (items, dimension) vectors, found shape {vectors.shape}")
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        first = ", ".join(map(str, broken[:5]))
        raise BadInput(
            f"{len(broken):,} of {len(vectors):,} item vectors hold NaN or infinity (first rows: {first}); "
            "the model that made them has diverged: train it again with a lower learning rate"
        )
