"""Lists of which one item was taken: the loss, and how well they are ordered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rerank.lists import DrawnList
from rerank.packed import PackedReranker
from rerank.packing import Prompt


@dataclass(frozen=True, slots=True)
class ListFigures:
    """How well lists are ordered.

    Attributes:
        loss: mean −log softmax of the item taken, in nats; ln k for constant scores.
        ndcg_10: mean over lists, one relevant item each; a tie counts as half a place lost.
    """

    loss: float
    ndcg_10: float


def list_figures(
    reranker: PackedReranker[Any],
    prompts: Sequence[Prompt],
    target_places: Sequence[int],
    *,
    autocast: torch.dtype | None = None,
) -> ListFigures:
    """Loss and NDCG@10 of lists whose item in `target_places` was taken."""
    losses, gains = [], []
    for scores, target in zip(reranker.score_prompts(prompts, autocast=autocast).scores, target_places, strict=True):
        wide = scores.astype(np.float64)
        losses.append(np.logaddexp.reduce(wide) - wide[target])
        above, level = (wide > wide[target]).sum(), (wide == wide[target]).sum() - 1
        rank = 1 + above + level / 2
        gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    return ListFigures(float(np.mean(losses)), float(np.mean(gains)))


def listwise_loss(scores: torch.Tensor, drawn: Sequence[DrawnList]) -> torch.Tensor:
    """Mean over lists of −log softmax(scores)[the item taken].

    Args:
        scores: (B, K) float32, -inf beyond the end of a list.
        drawn: B lists of at most K items.
    """
    targets = torch.tensor([made.target_place for made in drawn], device=scores.device)
    return F.cross_entropy(scores, targets)
