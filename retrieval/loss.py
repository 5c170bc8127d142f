"""Softmax over the catalog, whole or sampled."""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_softmax_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all items: logits (B, N), targets (B,) places among the N."""
    return F.cross_entropy(logits, targets)


def sampled_softmax_loss(
    positive: Tensor, sampled: Tensor, *, log_expected: Tensor, accidental: Tensor, mined: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy with the sum over the catalog estimated from a sample, and mined items summed outright.

    The catalog falls into three strata: the item taken, the items mined for it, and the rest. The first two
    are summed exactly; of the rest, exp(logit) / expected count, summed over the draws, is unbiased for the
    full sum (importance sampling, Bengio & Senécal 2008, eq. 8): popular items are drawn often, and are
    therefore divided by how often they are expected, the logQ correction. Mined items are no draws and have
    no expected count: set among the draws they would be counted twice, or by a wrong weight. As a stratum of
    their own they leave the sum unbiased, and take out of the estimate what makes it unsure: items that
    score far above what their popularity, by which draws are made, foretells.

    Args:
        positive: (B,) logits of the items taken.
        sampled: (B, S) logits of the items drawn.
        log_expected: (S,) log of how many times each drawn item is expected in the sample; +inf leaves it out.
        accidental: (B, S) bool, true where a drawn item is the one taken, or one of those mined; it is left out.
        mined: (B, M) logits of the items mined for each position, -inf where there is none.
    """
    corrected = (sampled - log_expected).masked_fill(accidental, float("-inf"))  # (B, S)
    strata = [positive[:, None], corrected] if mined is None else [positive[:, None], mined, corrected]
    return (torch.logsumexp(torch.cat(strata, dim=1), dim=1) - positive).mean()
