"""EASE: a linear item-to-item model in closed form."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import scipy.linalg
from pydantic import BaseModel, ConfigDict, Field

from baselines.base import (
    ScoresAll,
    Skipped,
    item_counts,
    popularity_order,
    user_item_matrix,
)
from data.schema import Histories, Rows, Scores


class EaseConfig(BaseModel):
    """Regularisation, and the catalog size that is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l2: float = Field(250.0, gt=0, description="added to the diagonal of the Gram matrix")
    max_items: int = Field(20_000, ge=1, description="larger catalogs are skipped: memory grows as items squared")


@dataclass(frozen=True)
class Ease(ScoresAll):
    """Embarrassingly shallow autoencoder (Steck 2019, eq. 8).

    Attributes:
        weights: (N, N) float32; row i is what item i of a history gives to every other item.
        order: (N,) item rows by popularity, which breaks ties.
        config: as fitted.
    """

    weights: Scores
    order: Rows
    config: EaseConfig
    name: ClassVar[str] = "ease"

    @classmethod
    def fit(cls, train: Histories, n_items: int, config: EaseConfig) -> Self:
        """Inverts the (N, N) Gram matrix in place: two such float32 matrices of memory.

        Raises:
            ValueError: when the catalog is larger than `config.max_items`; ask `refuses` before.
        """
        if refused := cls.refuses(n_items, config):
            raise ValueError(refused.reason)
        taken = user_item_matrix(train, n_items)
        gram = np.zeros((n_items, n_items), dtype=np.float32, order="F")
        (taken.T @ taken).toarray(out=gram)
        gram[np.diag_indices(n_items)] += np.float32(config.l2)
        # The inverse is symmetric: its transpose is itself, with the rows that scoring adds up contiguous.
        weights = _inverse(gram).T
        weights /= -np.diag(weights)  # column j divided by P_jj
        weights[np.diag_indices(n_items)] = 0
        return cls(weights, popularity_order(item_counts(train, n_items)), config)

    @classmethod
    def refuses(cls, n_items: int, config: EaseConfig) -> Skipped | None:
        """Why a catalog of `n_items` is not fitted, or None."""
        if n_items <= config.max_items:
            return None
        gigabytes = 2 * 4 * n_items**2 / 1e9
        return Skipped(
            cls.name,
            f"{n_items:,} items: EASE inverts an items × items matrix, {gigabytes:,.0f} GB here; it is fitted "
            f"up to {config.max_items:,} items",
        )

    def _score(self, histories: Histories) -> Scores:
        return np.asarray(user_item_matrix(histories, len(self.order)) @ self.weights)


def _inverse(gram: Scores) -> Scores:
    """The inverse of a positive definite (N, N) matrix by Cholesky, in its own memory."""
    factor, info = scipy.linalg.lapack.spotrf(gram, lower=0, clean=0, overwrite_a=1)
    if info == 0:
        inverse, info = scipy.linalg.lapack.spotri(factor, lower=0, overwrite_c=1)
    if info != 0:
        raise ValueError(f"the Gram matrix could not be inverted (LAPACK info {info}): raise l2")
    _mirror_upper(inverse)
    return np.asarray(inverse)


def _mirror_upper(matrix: Scores, step: int = 1024) -> None:
    """Copies the upper triangle onto the lower one, a block of rows at a time."""
    size = len(matrix)
    for start in range(0, size, step):
        stop = min(start + step, size)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        corner = np.triu(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner + np.triu(corner, 1).T
