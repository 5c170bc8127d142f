"""The score of a pair from token states: a cosine at first, whatever training finds later."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from rerank.packing import NO_AGE, Packed


def segment_weights(packed: Packed, decay: torch.Tensor) -> torch.Tensor:
    """Weights that average token states within each segment.

    A candidate is the plain mean of its tokens. The history is the mean over its items, the item of age a
    with weight decay^a, each item being the mean of its tokens; an empty history is the mean of its prefix.

    Args:
        packed: the batch.
        decay: scalar in (0, 1].

    Returns:
        (B, 1 + K, L), rows summing to 1, or to 0 for a segment that a prompt does not have.
    """
    segments = torch.arange(1 + packed.candidates, device=packed.segment_ids.device)
    inside = (packed.segment_ids[:, None, :] == segments[:, None]).to(decay.dtype)  # (B, 1 + K, L)
    empty = (packed.ages == NO_AGE).all(dim=1)  # (B,)
    ages = packed.ages.clamp(min=0)
    aged = (packed.ages != NO_AGE).to(decay.dtype)
    item_tokens = torch.zeros(ages.shape[0], int(ages.max()) + 1, dtype=decay.dtype, device=decay.device)
    item_tokens.scatter_add_(1, ages, aged)
    recency = aged * decay**ages / item_tokens.gather(1, ages).clamp(min=1)  # (B, L)
    history = torch.where(empty[:, None], inside[:, 0], recency)
    weights = torch.cat([history[:, None], inside[:, 1:]], dim=1)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


class PairHead(nn.Module):
    """score = temperature · cos(history, candidate) + MLP([candidate, history, candidate · history]).

    The MLP's last layer starts at zero, so that an untrained reranker ranks as the encoder's own cosine does.

    Args:
        dimension: D of the token states.
        width: of the MLP's hidden layer.
        temperature: factor of the cosine at the start.
        decay: weight of a history item over that of the next, more recent one, at the start; in (0, 1).
    """

    def __init__(self, dimension: int, *, width: int, temperature: float, decay: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.decay_logit = nn.Parameter(torch.tensor(math.log(decay / (1 - decay))))
        self.hidden = nn.Linear(3 * dimension, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Scores of all candidates.

        Args:
            states: (B, L, D) float32, the encoder's last layer.
            packed: the batch they came from.

        Returns:
            (B, K) float32; without meaning where a prompt has fewer candidates.
        """
        weights = segment_weights(packed, torch.sigmoid(self.decay_logit))
        pooled = weights @ states  # (B, 1 + K, D)
        history, candidates = F.normalize(pooled[:, :1], dim=-1), F.normalize(pooled[:, 1:], dim=-1)
        product = history * candidates  # (B, K, D)
        cosine = product.sum(dim=-1)  # (B, K)
        # Unit vectors have components near D^-1/2; the MLP gets them at the usual scale of 1.
        scale = math.sqrt(states.shape[-1])
        features = torch.cat([candidates, history.expand_as(candidates), product * scale], dim=-1) * scale
        correction = self.out(F.gelu(self.hidden(features))).squeeze(-1)
        scores: torch.Tensor = self.log_temperature.exp() * cosine + correction
        return scores
