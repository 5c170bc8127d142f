"""Softmax over a catalog with its gradient in one pass, so that the scores are written to memory once."""

from typing import Any

import torch
from torch import Tensor

POSITIONS_AT_ONCE = 1024
"""Rows of scores held at a time: 1,024 over 30,000 items are 123 MB in float32."""


def fused_softmax_loss(
    users: Tensor, items: Tensor, targets: Tensor, *, low_precision: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of users @ items.T, equal to `full_softmax_loss` of it.

    The plain graph writes and reads the (P, N) scores eight times, and memory, not arithmetic, is what a
    step waits for. Here the gradient of both factors is computed beside the loss while the scores are
    there (as in fused linear cross-entropy, Hsu et al. 2024); nothing of size P x N outlives the call.

    Args:
        users: (P, D) float32.
        items: (N, D) float32.
        targets: (P,) int64, places among the N items.
        low_precision: multiply in bfloat16, with sums and the softmax in float32.
        label_smoothing: share of the wanted distribution that is spread evenly over all N items.
    """
    loss: Tensor = _FusedSoftmax.apply(users, items, targets, low_precision, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _FusedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, targets: Tensor, low_precision: bool, label_smoothing: float
    ) -> Tensor:
        dtype = torch.bfloat16 if low_precision else users.dtype
        table = items.to(dtype)
        user_gradient = torch.empty_like(users)
        item_gradient = torch.zeros_like(items)
        total = users.new_zeros(())
        for start in range(0, len(users), POSITIONS_AT_ONCE):
            part = slice(start, start + POSITIONS_AT_ONCE)
            asked, wanted = users[part].to(dtype), targets[part, None]
            scores = (asked @ table.T).to(users.dtype)  # (p, N)
            largest = scores.amax(dim=1, keepdim=True)
            of_target = scores.gather(1, wanted) - largest
            scores.sub_(largest)
            if label_smoothing:
                total -= label_smoothing * scores.mean(dim=1).sum()
            scores.exp_()
            mass = scores.sum(dim=1, keepdim=True)
            total += (mass.log() - (1 - label_smoothing) * of_target).sum()
            scores.div_(mass)
            scores.scatter_add_(1, wanted, torch.full_like(mass, label_smoothing - 1))
            if label_smoothing:
                scores.sub_(label_smoothing / len(items))
            error = scores.to(dtype)
            user_gradient[part] = error @ table
            item_gradient += error.T @ asked
        ctx.save_for_backward(user_gradient, item_gradient)
        return total / len(users)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        user_gradient, item_gradient = ctx.saved_tensors
        scale = upstream[0] / len(user_gradient)
        return user_gradient * scale, item_gradient * scale, None, None, None
