"""Two stages over the shop whose second knows nothing but the alphabet."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from recommend.recommender import RecommendConfig, Recommender
from recommend.release import Stages
from rerank.base import RerankRequest, RerankResult
from rerank.budget import Cap, Cut
from rerank.fusion import RERANKER, RETRIEVAL

CONFIG = RecommendConfig(k=10, candidates=30, depth=8)


@dataclass
class ByTitle:
    """A reranker that prefers titles late in the alphabet, and remembers what it was asked."""

    name: str = "by title"
    requests: list[RerankRequest] = field(default_factory=list)
    calibrated: int = 0

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        self.requests += requests
        scores = [
            np.array([ord(text[0]) + ord(text[1]) / 1000 for text in request.candidates], dtype=np.float32)
            for request in requests
        ]
        tokens = [10 * len(request.candidates) + len(request.history) for request in requests]
        none = [0] * len(requests)
        uncut = [(Cut.NONE, Cap.NONE)] * len(requests)
        return RerankResult(scores, tokens, none, none, uncut)

    def calibrate(self) -> None:
        self.calibrated += 1


def weighed(stages: Stages, *, retrieval: float, reranker: float) -> Stages:
    # The range is that of the scores of the reranker that was trained.
    fusion = replace(stages.fusion, weights={RETRIEVAL: retrieval, RERANKER: reranker}, ranges={})
    return replace(stages, reranker=ByTitle(), fusion=fusion, prompt=None)


def history(recommender: Recommender, user: str = "u010"):
    return recommender.history_of(user)


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]
