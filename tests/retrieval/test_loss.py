import numpy as np
import pytest
import torch
from torch.nn import functional as F

from retrieval.loss import full_softmax_loss, sampled_softmax_loss

N, DRAWN = 12, 24
SHARE = 1 / np.arange(1, N + 1) ** 1.5
SHARE /= SHARE.sum()
LOGITS = torch.linspace(1.0, -1.0, N)  # popular items have the larger logits too
TARGET = 3


def partition(sign: int, *, draws: int = 40_000) -> float:
    """Mean of the estimated sum over the catalog, exp(loss + positive); sign 1 is logQ correction as it should be."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(N, (draws, DRAWN), p=SHARE)
    sampled = LOGITS[torch.from_numpy(drawn)]
    log_expected = sign * torch.from_numpy(np.log(SHARE[drawn] * DRAWN)).float()
    accidental = torch.from_numpy(drawn == TARGET)
    positive = LOGITS[TARGET : TARGET + 1]
    sums = [
        torch.exp(
            sampled_softmax_loss(
                positive, sampled[[draw]], log_expected=log_expected[draw], accidental=accidental[[draw]]
            )
            + positive[0]
        )
        for draw in range(0, 200)
    ]
    corrected = (sampled - log_expected).masked_fill(accidental, -torch.inf).exp().sum(dim=1) + positive.exp()
    np.testing.assert_allclose(torch.stack(sums), corrected[:200], rtol=1e-4)  # the formula below is the code's
    return float(corrected.mean())


def test_only_subtracting_log_q_is_unbiased_for_the_full_sum():
    full = float(LOGITS.exp().sum())
    assert partition(1) == pytest.approx(full, rel=0.02)
    assert abs(partition(0) - full) > 0.2 * full
    assert abs(partition(-1) - full) > 0.2 * full


def test_a_sample_of_every_item_once_gives_the_full_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, N, generator=generator)
    targets = torch.tensor([0, 3, 3, 11, 7])
    sampled = sampled_softmax_loss(
        logits[torch.arange(5), targets],
        logits,
        log_expected=torch.zeros(N),
        accidental=torch.arange(N)[None, :] == targets[:, None],
    )
    assert sampled.item() == pytest.approx(full_softmax_loss(logits, targets).item(), rel=1e-5)


@pytest.mark.parametrize("mined", [False, True])
def test_smoothed_labels_of_a_sample_of_every_item_once_are_those_of_the_full_loss(mined):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, N, generator=generator).requires_grad_()
    targets = torch.tensor([0, 3, 3, 11, 7])
    places = torch.tensor([[1, 2], [4, 5], [6, -1], [0, 1], [8, 9]])  # the third has one mined item only
    accidental = torch.arange(N)[None, :] == targets[:, None]
    hard = None
    if mined:
        hard = logits.gather(1, places.clamp(min=0)).masked_fill(places < 0, -torch.inf)
        accidental = accidental | (torch.arange(N)[None, None, :] == places[:, :, None]).any(dim=1)
    sampled = sampled_softmax_loss(
        logits[torch.arange(5), targets],
        logits,
        log_expected=torch.zeros(N),
        accidental=accidental,
        mined=hard,
        label_smoothing=0.3,
    )
    expected = F.cross_entropy(logits, targets, label_smoothing=0.3)
    assert sampled.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (sampled, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_smoothed_labels_of_a_sample_come_near_those_of_the_full_loss_and_forget_a_constant():
    drawn = np.random.default_rng(0).choice(N, 50_000, p=SHARE)
    target = torch.tensor([TARGET])
    found = [
        sampled_softmax_loss(
            logits[target],
            logits[torch.from_numpy(drawn)][None, :],
            log_expected=torch.from_numpy(np.log(SHARE[drawn] * len(drawn))).float(),
            accidental=torch.from_numpy(drawn == TARGET)[None, :],
            label_smoothing=0.4,
        ).item()
        for logits in (LOGITS, LOGITS + 7)
    ]
    assert found[0] == pytest.approx(F.cross_entropy(LOGITS[None, :], target, label_smoothing=0.4).item(), rel=0.01)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_full_softmax_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = (np.log(np.exp([1.0, 2.0, 0.0]).sum()) - 2 + np.log(3)) / 2
    assert full_softmax_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected)


def test_drawing_nothing_but_the_target_costs_nothing():
    loss = sampled_softmax_loss(
        torch.tensor([0.5]),
        torch.tensor([[0.5, 0.5]]),
        log_expected=torch.zeros(2),
        accidental=torch.ones(1, 2, dtype=torch.bool),
    )
    assert loss.item() == pytest.approx(0.0)
