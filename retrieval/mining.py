"""Hard negatives: what a retriever ranks high for a user who never took it."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.schema import NO_ITEM, Histories, Rows, Scores

SCORES_AT_ONCE = 32_000_000
"""Scores held in memory at a time while mining, 128 MB of float32."""


class MiningConfig(BaseModel):
    """Which of the retriever's own top places are hard negatives of a sampled softmax."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_position: int = Field(0, ge=0, description="mined for each place of a history, beside those drawn; 0: none")
    first_rank: int = Field(10, ge=0, description="best-scored items passed over: some of them would be taken, too")
    last_rank: int = Field(100, ge=1, description="places beyond this one are not hard")
    duplicate_cosine: float = Field(
        0.95, gt=0, le=1.0, description="items whose text is at least this close to the target's are spared"
    )

    @model_validator(mode="after")
    def _ranks_in_order(self) -> "MiningConfig":
        if self.first_rank >= self.last_rank:
            raise ValueError(f"first_rank is {self.first_rank} and last_rank {self.last_rank}: it must be the smaller")
        return self


@dataclass(frozen=True)
class HardNegatives:
    """For each user the items of the configured ranks, from which every step draws.

    Attributes:
        ranked: (U, R) int32, in order of their ranks among what the user never took; NO_ITEM where there are fewer.
        text: (N, E) float32 text vectors of length 1, or 0.
    """

    ranked: np.ndarray
    text: Scores
    config: MiningConfig

    @classmethod
    def mine(
        cls, user_vectors: Scores, item_vectors: Scores, taken: Histories, *, text: Scores, config: MiningConfig
    ) -> "HardNegatives":
        """Exact, at the cost of U × N inner products.

        Args:
            user_vectors, item_vectors: (U, D) and (N, D), compared by inner product.
            taken: U lists of everything that each user is known to have taken; none of it becomes a negative.
        """
        n_items, last = len(item_vectors), min(config.last_rank, len(item_vectors))
        # Nobody's: in training such an item is never a target, and would only be pushed away.
        unknown = torch.from_numpy(np.bincount(taken.item_rows, minlength=n_items) == 0)
        items = torch.from_numpy(item_vectors).T
        ranked = np.full((len(user_vectors), max(last - config.first_rank, 0)), NO_ITEM, dtype=np.int32)
        at_once = max(1, SCORES_AT_ONCE // n_items)
        for start in range(0, len(user_vectors), at_once):
            users = np.arange(start, min(start + at_once, len(user_vectors)))
            known = taken.take(users)
            scores = torch.from_numpy(user_vectors[users]) @ items
            scores[known.list_of_row, known.item_rows] = -torch.inf
            scores[:, unknown] = -torch.inf
            best = scores.topk(last, dim=1)
            rows = torch.where(best.values > -torch.inf, best.indices, NO_ITEM)
            ranked[users] = rows[:, config.first_rank :].numpy()
        return cls(ranked, text, config)

    def draw(self, users: Rows, targets: Rows, rng: np.random.Generator) -> Rows:
        """(P, M) distinct item rows for positions of these users (P,), NO_ITEM where there are fewer.

        Drawn evenly; what reads like the position's target (P,) is then left out, and nothing takes its place.
        """
        width = min(self.config.per_position, self.ranked.shape[1])
        places = np.argsort(rng.random((len(users), self.ranked.shape[1])), axis=1)[:, :width]
        rows = self.ranked[users[:, None], places].astype(np.int64)
        alike = np.einsum("pme,pe->pm", self.text[rows], self.text[targets]) >= self.config.duplicate_cosine
        return np.where(alike, NO_ITEM, rows)
