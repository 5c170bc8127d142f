import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rerank.base import RerankResult
from rerank.lists import DrawnList
from rerank.listwise import list_figures, listwise_loss


class Fixed:
    """Stands for a reranker whose scores are known."""

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        self.scores = [np.array(row, dtype=np.float32) for row in scores]

    def score_prompts(self, prompts: Sequence[Any], *, autocast: torch.dtype | None = None) -> RerankResult:
        assert len(prompts) == len(self.scores)
        none = [0] * len(prompts)
        return RerankResult(self.scores, none, none, none, [])


def test_loss_is_the_softmax_written_out_and_ignores_what_is_beyond_a_list() -> None:
    drawn = [DrawnList(np.arange(3), 1), DrawnList(np.arange(2), 0)]
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.5, -0.5, -math.inf]])
    first = -math.log(math.exp(2) / (math.e + math.exp(2) + 1))
    second = -math.log(math.exp(0.5) / (math.exp(0.5) + math.exp(-0.5)))
    assert listwise_loss(scores, drawn).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_figures_written_out() -> None:
    figures = list_figures(Fixed([[1, 2, 0], [0, 3]]), [None, None], [0, 1])  # type: ignore[arg-type, list-item]
    assert figures.ndcg_10 == pytest.approx((1 / math.log2(3) + 1) / 2)
    losses = [math.log(math.e + math.exp(2) + 1) - 1, math.log(1 + math.exp(3)) - 3]
    assert figures.loss == pytest.approx(sum(losses) / 2)


def test_constant_scores_earn_the_middle_place_not_the_first() -> None:
    figures = list_figures(Fixed([[5.0] * 9]), [None], [0])  # type: ignore[arg-type, list-item]
    assert figures.loss == pytest.approx(math.log(9))
    assert figures.ndcg_10 == pytest.approx(1 / math.log2(5 + 1))


def test_a_target_below_the_tenth_place_gains_nothing() -> None:
    figures = list_figures(Fixed([list(range(12, 0, -1))]), [None], [10])  # type: ignore[arg-type, list-item]
    assert figures.ndcg_10 == 0
