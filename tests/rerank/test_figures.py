import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rerank.base import RerankResult
from rerank.figures import ListFigures, list_figures
from rerank.lists import DrawnList


class Fixed:
    """Stands for a reranker whose scores are known."""

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        self.scores = [np.array(row, dtype=np.float32) for row in scores]

    def score_prompts(self, prompts: Sequence[Any], *, autocast: torch.dtype | None = None) -> RerankResult:
        assert len(prompts) == len(self.scores)
        none = [0] * len(prompts)
        return RerankResult(self.scores, none, none, none, [])


def figures_of(scores: Sequence[Sequence[float]], targets: Sequence[int], prior: Any = None) -> ListFigures:
    drawn = [DrawnList(np.arange(len(row)), at, prior) for row, at in zip(scores, targets, strict=True)]
    return list_figures(Fixed(scores), [None] * len(scores), drawn)  # type: ignore[arg-type, list-item]


def test_figures_written_out() -> None:
    figures = figures_of([[1, 2, 0], [0, 3]], [0, 1])
    assert figures.ndcg_10 == pytest.approx((1 / math.log2(3) + 1) / 2)
    losses = [math.log(math.e + math.exp(2) + 1) - 1, math.log(1 + math.exp(3)) - 3]
    assert figures.loss == pytest.approx(sum(losses) / 2)


def test_constant_scores_earn_the_middle_place_not_the_first() -> None:
    figures = figures_of([[5.0] * 9], [0])
    assert figures.loss == pytest.approx(math.log(9))
    assert figures.ndcg_10 == pytest.approx(1 / math.log2(5 + 1))


def test_a_target_below_the_tenth_place_gains_nothing() -> None:
    figures = figures_of([list(range(12, 0, -1))], [10])
    assert figures.ndcg_10 == 0


def test_figures_are_of_prior_and_score_together() -> None:
    prior = np.array([0.0, 0.0, 3.0], dtype=np.float32)
    assert figures_of([[1, 2, 0]], [2], prior) == figures_of([[1, 2, 3]], [2])
