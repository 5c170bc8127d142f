import math

import numpy as np
import pytest
import torch

from rerank.fit import RerankerConfig
from rerank.lists import DrawnList
from rerank.objective import Objective, loss_of
from rerank.train_config import RerankTrainConfig

DRAWN = [DrawnList(np.arange(3), 1), DrawnList(np.arange(2), 0)]
SCORES = torch.tensor([[1.0, 2.0, 0.0], [0.5, -0.5, -math.inf]])


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def test_listwise_loss_is_the_softmax_written_out_and_ignores_what_is_beyond_a_list() -> None:
    wanted = -(math.log(softmax([1, 2, 0])[1]) + math.log(softmax([0.5, -0.5])[0])) / 2
    assert loss_of(Objective.LISTWISE, SCORES, DRAWN).item() == pytest.approx(wanted, abs=1e-6)


def test_pointwise_loss_is_each_items_cross_entropy_averaged_over_its_list() -> None:
    def bce(score: float, *, taken: bool) -> float:
        return math.log1p(math.exp(-score if taken else score))

    first = (bce(1, taken=False) + bce(2, taken=True) + bce(0, taken=False)) / 3
    second = (bce(0.5, taken=True) + bce(-0.5, taken=False)) / 2
    assert loss_of(Objective.POINTWISE, SCORES, DRAWN).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_a_prior_is_added_before_the_softmax() -> None:
    prior = np.array([0.5, -1.0, 0.25], dtype=np.float32)
    drawn = [DrawnList(np.arange(3), 1, prior)]
    wanted = -math.log(softmax([1.5, 1.0, 0.25])[1])
    assert loss_of(Objective.LISTWISE, SCORES[:1], drawn).item() == pytest.approx(wanted, abs=1e-6)


def test_a_teacher_takes_its_share_of_the_loss() -> None:
    teacher = np.array([0.0, 1.0, 2.0], dtype=np.float32)
    drawn = [DrawnList(np.arange(3), 1, teacher=teacher)]
    taken = -math.log(softmax([1, 2, 0])[1])
    cooler = [softmax([value / 2 for value in row]) for row in ([0, 1, 2], [1, 2, 0])]
    taught = -4 * sum(wanted * math.log(found) for wanted, found in zip(*cooler, strict=True))
    for weight in (0.0, 0.3, 1.0):
        found = loss_of(Objective.LISTWISE, SCORES[:1], drawn, teacher_weight=weight, teacher_temperature=2.0)
        assert found.item() == pytest.approx((1 - weight) * taken + weight * taught, abs=1e-5)


def test_a_list_without_target_learns_from_the_teacher_alone() -> None:
    teacher = np.array([0.0, 1.0, 2.0], dtype=np.float32)
    blind = [DrawnList(np.arange(3), None, teacher=teacher)]
    targeted = [DrawnList(np.arange(3), 1, teacher=teacher)]
    found = [
        loss_of(Objective.LISTWISE, SCORES[:1], drawn, teacher_weight=weight).item()
        for drawn, weight in ((blind, 0.3), (targeted, 1.0))
    ]
    assert found[0] == pytest.approx(found[1])


def test_the_best_scores_are_those_of_the_teacher() -> None:
    drawn = [DrawnList(np.arange(3), None, teacher=np.array([0.0, 1.0, 2.0], dtype=np.float32))]
    scores = torch.tensor([[5.0, 6.0, 7.0]], requires_grad=True)
    loss_of(Objective.LISTWISE, scores, drawn, teacher_weight=1.0).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad.abs().max().item() < 1e-6


def test_only_a_softmax_over_lists_learns_beside_retrievals_score() -> None:
    pointwise = RerankTrainConfig(objective=Objective.POINTWISE)
    assert RerankerConfig().learns_beside_retrieval
    assert not RerankerConfig(residual=False).learns_beside_retrieval
    assert not RerankerConfig(train=pointwise).learns_beside_retrieval
