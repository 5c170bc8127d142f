"""The loss of one step: softmax over all trained items, or over a sample of them in a large catalog."""

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from data.schema import NO_ITEM, Rows
from retrieval.fused_softmax import fused_softmax_loss
from retrieval.negatives import NegativeSampler
from retrieval.towers import TwoTowers

FULL_SOFTMAX_ITEMS = 30_000
"""Up to this many trained items `auto` runs the softmax over all of them; beyond, over a sample."""


class Softmax(StrEnum):
    """Which items each position is held against."""

    AUTO = "auto"
    FULL = "full"
    SAMPLED = "sampled"


class Objective:
    """Softmax cross-entropy of the items that came next.

    Args:
        counts: (N,) training interactions of each item; those without one are never scored.
        sampled_items: items drawn for a step where the softmax is sampled.
        low_precision: multiply in bfloat16.
        softmax: full or sampled, or by the number of items.
        target_counts: (N,) how many positions lead to each item; given, the positions of a step share their
            targets as negatives where the softmax is sampled.
    """

    def __init__(
        self,
        model: TwoTowers,
        counts: Rows,
        *,
        sampled_items: int,
        low_precision: bool,
        softmax: Softmax = Softmax.AUTO,
        target_counts: Rows | None = None,
    ) -> None:
        self.model, self.low_precision = model, low_precision
        # An item without a training interaction is never a target: left in, the softmax would push it away.
        warm = np.nonzero(counts)[0]
        place = np.full(len(counts), NO_ITEM, dtype=np.int64)
        place[warm] = np.arange(len(warm))
        at = model.text.device
        self.warm, self.place = torch.from_numpy(warm).to(at), torch.from_numpy(place).to(at)
        self.sampler: NegativeSampler | None = None
        if samples_softmax(counts, softmax):
            self.sampler = NegativeSampler(counts, size=sampled_items, target_counts=target_counts)

    def __call__(self, users: Tensor, targets: Tensor, rng: np.random.Generator, mined: Rows | None = None) -> Tensor:
        """Mean loss of user vectors (P, D) and the item rows (P,) that followed.

        Args:
            rng: draws the sample.
            mined: (P, M) hard negatives of each position for a sampled softmax; a full one has them all.
        """
        smoothing, users = self.model.config.label_smoothing, users / self.model.config.temperature
        if self.sampler is None:
            items = self.model.item_vectors_at(self.warm)
            return fused_softmax_loss(
                users, items, self.place[targets], low_precision=self.low_precision, label_smoothing=smoothing
            )
        negatives = self.sampler.draw(targets.cpu().numpy(), rng, mined=mined)
        items = self.model.item_vectors_at(torch.from_numpy(negatives.rows).to(users.device))
        with torch.autocast(users.device.type, torch.bfloat16, enabled=self.low_precision):
            logits = users @ items.T
        return negatives.loss(logits.float(), label_smoothing=smoothing)


def samples_softmax(counts: Rows, softmax: Softmax = Softmax.AUTO) -> bool:
    """Whether the softmax of a catalog with these interactions (N,) of each item runs over a sample of them."""
    if softmax is not Softmax.AUTO:
        return softmax is Softmax.SAMPLED
    return int((counts > 0).sum()) > FULL_SOFTMAX_ITEMS
