"""How well lists of which one item was taken are ordered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.schema import Scores
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
    drawn: Sequence[DrawnList],
    *,
    scale: float = 1.0,
    autocast: torch.dtype | None = None,
) -> ListFigures:
    """Loss and NDCG@10 of lists of which one item was taken, by prior + scale · score where there is a prior."""
    return figures_of(reranker.score_prompts(prompts, autocast=autocast).scores, drawn, scale=scale)


def figures_of(scores: Sequence[Scores], drawn: Sequence[DrawnList], *, scale: float = 1.0) -> ListFigures:
    """The same from the scores."""
    losses, gains = [], []
    for found, made in zip(scores, drawn, strict=True):
        assert made.target_place is not None
        wide = scale * found.astype(np.float64) + (0.0 if made.prior is None else made.prior)
        target = wide[made.target_place]
        losses.append(np.logaddexp.reduce(wide) - target)
        above, level = (wide > target).sum(), (wide == target).sum() - 1
        rank = 1 + above + level / 2
        gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    return ListFigures(float(np.mean(losses)), float(np.mean(gains)))
