"""What a reranker is trained for: losses over lists of which one item was taken."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from torch.nn import functional as F

from data.schema import Scores
from rerank.lists import DrawnList


class Objective(StrEnum):
    """How scores and the item taken make a loss."""

    LISTWISE = "listwise"
    """the item taken against the others of its list: −log softmax (ListNet with one relevant item, Cao et al. 2007)"""
    POINTWISE = "pointwise"
    """each item by itself, taken or not: binary cross-entropy; scores are log-odds"""
    GRADED = "graded"
    """how items that were taken were rated: −log softmax over the grades; scores are expected ratings"""


def loss_of(
    objective: Objective,
    scores: torch.Tensor,
    drawn: Sequence[DrawnList],
    *,
    teacher_weight: float = 0.0,
    teacher_temperature: float = 1.0,
) -> torch.Tensor:
    """Mean over lists of the loss of each by the item taken; see `graded_loss` for ratings.

    Where a list has a prior, what is learnt listwise is what it leaves open: softmax(prior + score).
    Where it has a teacher's scores, the loss is a mixture with the cross-entropy to the teacher's softmax
    (Hinton et al. 2015, over the items of a list); a list without a target learns from the teacher alone.

    Args:
        scores: (B, K) float32, -inf beyond the end of a list.
        drawn: B lists of at most K items.
        teacher_weight: of the teacher in the mixture, in [0, 1].
        teacher_temperature: by which both sides are divided before their softmax.
    """
    logits = scores + padded([made.prior for made in drawn], scores)
    losses = _taken(objective, logits, drawn)  # (B,)
    if teacher_weight and any(made.teacher is not None for made in drawn):
        taught = _taught(logits, drawn, temperature=teacher_temperature)
        targeted = torch.tensor([made.target_place is not None for made in drawn])
        has_teacher = torch.tensor([made.teacher is not None for made in drawn])
        weight = torch.where(targeted, torch.where(has_teacher, teacher_weight, 0.0), 1.0).to(scores.device)
        losses = (1 - weight) * losses + weight * taught
    return losses.mean()


def graded_loss(logits: torch.Tensor, drawn: Sequence[DrawnList]) -> torch.Tensor:
    """Mean over lists of the mean −log softmax of each item's grade.

    Args:
        logits: (ΣK, G) float32 of the items of all lists, one list behind the other.
        drawn: lists with grades.
    """
    grades = [torch.from_numpy(np.asarray(made.grades, dtype=np.int64)) for made in drawn]
    each = F.cross_entropy(logits, torch.cat(grades).to(logits.device), reduction="none")
    return torch.stack([part.mean() for part in torch.split(each, [len(part) for part in grades])]).mean()


def padded(columns: Sequence[Scores | None], like: torch.Tensor) -> torch.Tensor:
    """(B, K) float32: one column a list, 0 beyond its end and where a list has none."""
    out = torch.zeros_like(like)
    for place, values in enumerate(columns):
        if values is not None:
            out[place, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(like.device)
    return out


def _taken(objective: Objective, logits: torch.Tensor, drawn: Sequence[DrawnList]) -> torch.Tensor:
    """(B,) the loss by the item taken; 0 for a list without one."""
    nobody = -100
    targets = torch.tensor(
        [nobody if made.target_place is None else made.target_place for made in drawn], device=logits.device
    )
    if objective is Objective.LISTWISE:
        return F.cross_entropy(logits, targets, ignore_index=nobody, reduction="none")
    present = torch.isfinite(logits)
    wanted = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    each = F.binary_cross_entropy_with_logits(
        torch.where(present, logits, 0.0), wanted.to(logits.dtype), reduction="none"
    )
    return (each * present).sum(dim=1) / present.sum(dim=1) * (targets != nobody)


def _taught(logits: torch.Tensor, drawn: Sequence[DrawnList], *, temperature: float) -> torch.Tensor:
    """(B,) cross-entropy of the softmax of scores to that of the teacher's; 0 for a list without a teacher."""
    present = torch.isfinite(logits)
    teacher = padded([made.teacher for made in drawn], logits).masked_fill(~present, float("-inf"))
    wanted = (teacher / temperature).softmax(dim=1)
    found = (logits / temperature).log_softmax(dim=1).masked_fill(~present, 0.0)
    taught = torch.tensor([made.teacher is not None for made in drawn], device=logits.device)
    return -(wanted * found).sum(dim=1) * temperature**2 * taught
