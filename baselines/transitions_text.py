"""Counted transitions plus the similarity of untrained text vectors: strong, and nothing is trained."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from baselines.base import ScoresAll, item_counts, popularity_order
from data.schema import Histories, Rows, Scores
from retrieval.transitions import Transitions, TransitionsConfig


class TransitionsTextConfig(BaseModel):
    """The counts, and how much the texts weigh beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transitions: TransitionsConfig = Field(default_factory=TransitionsConfig, description="how pairs are counted")
    text_weight: float = Field(0.1, ge=0, description="what a cosine of 1 adds to a transition; 0: counts alone")


@dataclass(frozen=True)
class TransitionsText(ScoresAll):
    """score = Σ_j decay^j · (transition(j → i) + text_weight · cosine(j, i)) over the end of a history.

    Cosines are taken of mean-centred vectors: what all texts of a catalog have in common says nothing.

    Attributes:
        transitions: fitted counts.
        text_vectors: (N, D) float32, centred, L2-normalised.
        order: (N,) item rows by popularity, which breaks ties and fills up.
        config: as fitted.
    """

    transitions: Transitions
    text_vectors: Scores
    order: Rows
    config: TransitionsTextConfig
    name: ClassVar[str] = "transitions + text"

    @classmethod
    def fit(cls, train: Histories, n_items: int, config: TransitionsTextConfig, *, text_vectors: Scores) -> Self:
        """Counts the training log and centres the vectors.

        Args:
            train: the training log.
            n_items: N.
            config: see there.
            text_vectors: (N, D) float32, one for each item, as an untrained encoder gives them.
        """
        if len(text_vectors) != n_items:
            raise ValueError(f"{n_items} items but {len(text_vectors)} text vectors")
        return cls(
            Transitions.fit(train, n_items, config.transitions),
            _centred(text_vectors),
            popularity_order(item_counts(train, n_items)),
            config,
        )

    def _score(self, histories: Histories) -> Scores:
        weights = self.transitions.history_weights(histories)  # (B, N) sparse
        counted = (weights @ self.transitions.weights).toarray()
        if self.config.text_weight:
            user_vectors = weights @ self.text_vectors  # (B, D)
            counted += np.float32(self.config.text_weight) * (user_vectors @ self.text_vectors.T)
        return np.asarray(counted)


def _centred(vectors: Scores) -> Scores:
    moved = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / np.maximum(norms, 1e-12), dtype=np.float32)
