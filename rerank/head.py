"""The score of a pair from token states: a cosine at first, whatever training finds later."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rerank.packing import NO_AGE, Packed


def pooled_segments(states: torch.Tensor, packed: Packed, decay: torch.Tensor) -> torch.Tensor:
    """One vector for each segment, averaged over its tokens.

    A candidate is the plain mean of its tokens. The history is the mean over its items, the item of age a
    with weight decay^a, each item being the mean of its tokens; an empty history is the mean of its prefix.

    Args:
        states: (L, D), the last layer's.
        packed: the row they came from.
        decay: scalar in (0, 1].

    Returns:
        (S, D), S segments in the row; 0 for a prefix that is not in it.
    """
    segments = packed.segments
    count = sum(1 + k for k in packed.candidates)
    aged = packed.ages != NO_AGE
    ages = packed.ages.clamp(min=0)
    longest = max(packed.oldest, 0) + 1
    place = segments * longest + ages
    item_tokens = states.new_zeros(count * longest).index_add_(0, place, aged.to(states.dtype))
    recency = aged * decay**ages / item_tokens[place].clamp(min=1)  # (L,)
    with_items = item_tokens.view(count, longest).sum(dim=1) > 0  # (S,)
    weights = torch.where(with_items[segments], recency, torch.ones_like(recency))
    total = weights.new_zeros(count).index_add(0, segments, weights).clamp(min=1e-9)
    weighed = states * (weights / total[segments])[:, None]
    return states.new_zeros(count, states.shape[1]).index_add(0, segments, weighed)


class PairHead(nn.Module):
    """score = temperature · cos(history, candidate) + MLP([candidate, history, candidate · history]).

    The MLP's last layer starts at zero, so that an untrained reranker ranks as the encoder's own cosine does.

    Args:
        dimension: D of the token states.
        width: of the MLP's hidden layer.
        temperature: factor of the cosine at the start.
        decay: weight of a history item over that of the next, more recent one, at the start; in (0, 1).
        outputs: of the MLP.
    """

    def __init__(self, dimension: int, *, width: int, temperature: float, decay: float, outputs: int = 1) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.decay_logit = nn.Parameter(torch.tensor(math.log(decay / (1 - decay))))
        self.hidden = nn.Linear(3 * dimension, width)
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiplies all scores by `factor`, and leaves everything that is learnt where it was learnt."""
        self.log_temperature.add_(math.log(factor))
        self.out.weight.mul_(factor)
        self.out.bias.mul_(factor)

    def forward(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) scores of all candidates of a row, from the encoder's last layer (L, D) float32."""
        cosine, correction = self.cosine_and_correction(states, packed)
        scores: torch.Tensor = self.log_temperature.exp() * cosine + correction.squeeze(-1)
        return scores

    def cosine_and_correction(self, states: torch.Tensor, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """(ΣK,) of history and candidate, and what the MLP gives, (ΣK, outputs)."""
        decay = torch.sigmoid(self.decay_logit)
        pooled = pooled_segments(states, packed, decay)  # (S, D)
        history = F.normalize(pooled[packed.prefix_segments], dim=-1)
        candidates = F.normalize(pooled[packed.candidate_segments], dim=-1)
        product = history * candidates  # (ΣK, D)
        # Unit vectors have components near D^-1/2; the MLP gets them at the usual scale of 1.
        scale = math.sqrt(states.shape[-1])
        features = torch.cat([candidates, history, product * scale], dim=-1) * scale
        return product.sum(dim=-1), self.out(F.gelu(self.hidden(features)))


class GradedPairHead(PairHead):
    """score = Σ softmax(logits) · grade, the rating to be expected.

    The logit of a grade is temperature · cos(history, candidate) · its place in [−1, 1] plus an output of the MLP, so
    that untrained it ranks as `PairHead` does.

    Args:
        grades: (G,) the rating scale, lowest first.
    """

    grades: torch.Tensor
    places: torch.Tensor

    def __init__(
        self, dimension: int, *, width: int, temperature: float, decay: float, grades: Sequence[float]
    ) -> None:
        super().__init__(dimension, width=width, temperature=temperature, decay=decay, outputs=len(grades))
        self.register_buffer("grades", torch.tensor(grades, dtype=torch.float32))
        self.register_buffer("places", torch.linspace(-1, 1, len(grades)), persistent=False)

    def logits(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK, G) float32."""
        cosine, correction = self.cosine_and_correction(states, packed)
        return (self.log_temperature.exp() * cosine)[:, None] * self.places + correction

    def forward(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) expected ratings."""
        return expected(self.logits(states, packed), self.grades)


def expected(logits: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """(n,) ratings to be expected from logits (n, G) of the grades (G,)."""
    return logits.float().softmax(dim=-1) @ grades
