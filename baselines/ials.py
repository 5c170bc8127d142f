"""Implicit alternating least squares, by the library `implicit`."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from baselines.base import ScoresAll, item_counts, popularity_order, user_item_matrix
from data.schema import Histories, Rows, Scores


class IalsConfig(BaseModel):
    """Size and weighting of the factors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factors: int = Field(64, ge=1, description="length of a user's or an item's vector")
    alpha: float = Field(10.0, gt=0, description="weight of a taken item; one that was not taken weighs 1")
    l2: float = Field(1.0, ge=0, description="regularisation of every factor")
    iterations: int = Field(15, ge=1, description="rounds of users, then items")


@dataclass(frozen=True)
class ImplicitAls(ScoresAll):
    """Matrix factorisation with weights (Hu, Koren, Volinsky 2008).

    A history is folded in: its user factor is solved exactly against the fixed item factors, so that what
    came after training counts, and users who were never seen are served.

    Attributes:
        model: the fitted library object, of which only the item factors are used.
        order: (N,) item rows by popularity, which breaks ties.
        config: as fitted.
    """

    model: Any
    order: Rows
    config: IalsConfig
    name: ClassVar[str] = "ials"

    @classmethod
    def fit(cls, train: Histories, n_items: int, config: IalsConfig, *, seed: int = 0) -> Self:
        """Alternates between users and items from a seeded random start."""
        # BLAS threads inside of the library's own threads slow it down tenfold, of which it warns.
        with threadpool_limits(limits=1, user_api="blas"):
            model = AlternatingLeastSquares(
                factors=config.factors,
                alpha=config.alpha,
                regularization=config.l2,
                iterations=config.iterations,
                random_state=seed,
            )
            model.fit(user_item_matrix(train, n_items), show_progress=False)
        return cls(model, popularity_order(item_counts(train, n_items)), config)

    @property
    def item_factors(self) -> Scores:
        """(N, factors) float32."""
        return np.asarray(self.model.item_factors)

    def user_factors(self, histories: Histories) -> Scores:
        """(B, factors) float32: the least-squares solution for each history; zero for an empty one."""
        taken = user_item_matrix(histories, len(self.order))
        with threadpool_limits(limits=1, user_api="blas"):
            return np.asarray(self.model.recalculate_user(np.arange(len(histories)), taken))

    def _score(self, histories: Histories) -> Scores:
        return self.user_factors(histories) @ self.item_factors.T  # (B, N)
