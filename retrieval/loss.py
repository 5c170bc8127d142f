"""Softmax over the catalog, whole or sampled."""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_softmax_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all items: logits (B, N), targets (B,) places among the N."""
    return F.cross_entropy(logits, targets)


def sampled_softmax_loss(
    positive: Tensor,
    sampled: Tensor,
    *,
    log_expected: Tensor,
    accidental: Tensor,
    mined: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy with the sum over the catalog estimated from a sample, and mined items summed outright.

    The catalog falls into three strata: the item taken, the items mined for it, and the rest. The first two
    are summed exactly; of the rest, exp(logit) / expected count, summed over the draws, is unbiased for the
    full sum (importance sampling, Bengio & Senécal 2008, eq. 8): popular items are drawn often, and are
    therefore divided by how often they are expected, the logQ correction. Mined items are no draws and have
    no expected count: set among the draws they would be counted twice, or by a wrong weight. As a stratum of
    their own they leave the sum unbiased, and take out of the estimate what makes it unsure: items that
    score far above what their popularity, by which draws are made, foretells.

    With label smoothing the wanted distribution has a share that is even over the catalog. The mean logit that it
    meets is estimated from the same strata, each draw weighed by one over its expected count, and these weights
    divided by their sum: a constant added to all logits then changes nothing, as in the full sum.

    Args:
        positive: (B,) logits of the items taken.
        sampled: (B, S) logits of the items drawn.
        log_expected: (S,) log of how many times each drawn item is expected in the sample; +inf leaves it out.
        accidental: (B, S) bool, true where a drawn item is the one taken, or one of those mined; it is left out.
        mined: (B, M) logits of the items mined for each position, -inf where there is none.
        label_smoothing: share of the wanted distribution that is spread evenly over the catalog.
    """
    corrected = (sampled - log_expected).masked_fill(accidental, float("-inf"))  # (B, S)
    strata = [positive[:, None], corrected] if mined is None else [positive[:, None], mined, corrected]
    wanted = positive
    if label_smoothing:
        exact = torch.cat(strata[:-1], dim=1)  # (B, 1 + M)
        drawn = (-log_expected).exp().expand_as(sampled).masked_fill(accidental, 0.0)
        weights = torch.cat([(exact > float("-inf")).to(drawn.dtype), drawn], dim=1)
        # What weighs nothing may be -inf, and times 0 that would be NaN.
        logits = torch.cat([exact, sampled], dim=1).masked_fill(weights == 0, 0.0)
        mean = (weights * logits).sum(dim=1) / weights.sum(dim=1)
        wanted = (1 - label_smoothing) * positive + label_smoothing * mean
    return (torch.logsumexp(torch.cat(strata, dim=1), dim=1) - wanted).mean()
