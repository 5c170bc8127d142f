"""Softmax over the catalog, whole or sampled."""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_softmax_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all items: logits (B, N), targets (B,) places among the N."""
    return F.cross_entropy(logits, targets)


def sampled_softmax_loss(positive: Tensor, sampled: Tensor, *, log_expected: Tensor, accidental: Tensor) -> Tensor:
    """Mean cross-entropy with the sum over the catalog estimated from a sample.

    The estimate exp(positive) + Σ exp(sampled) / expected count is unbiased for the full sum
    (importance sampling, Bengio & Senécal 2008, eq. 8): popular items are drawn often, and are
    therefore divided by how often they are expected, the logQ correction.

    Args:
        positive: (B,) logits of the items taken.
        sampled: (B, S) logits of the items drawn.
        log_expected: (S,) log of how many times each drawn item is expected in a sample of S.
        accidental: (B, S) bool, true where a drawn item is the one taken; it is left out.
    """
    corrected = (sampled - log_expected).masked_fill(accidental, float("-inf"))  # (B, S)
    return (torch.logsumexp(torch.cat([positive[:, None], corrected], dim=1), dim=1) - positive).mean()
