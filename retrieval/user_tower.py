"""What a user tower promises, and the plainest one: a decayed sum over the last items."""

from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

from data.schema import NO_ITEM, Histories, Words
from retrieval.examples import Examples, Positions
from retrieval.item_tower import RESIDUAL_SPREAD, ItemVectors, Join, LinearMap, joined


class UserTowerKind(StrEnum):
    """How the items of a history become the vector of a user."""

    RECENCY = "recency"
    """a sum of item vectors, with one learned weight for each step back"""
    SEQUENCE = "sequence"
    """a causal transformer over item vectors; with ids alone it is SASRec"""
    TEXT = "text"
    """the history in words, read by the sentence-transformer"""


class UserTower(Protocol):
    """Turns histories into vectors that are compared with item vectors by inner product.

    The last dimension of a user vector is 1 and meets the item's bias.
    """

    @property
    def history_items(self) -> int:
        """H, how many of the last items are read."""
        ...

    def examples(self, train: Histories) -> Examples:
        """What this tower learns from."""
        ...

    def vectors_at(self, items: ItemVectors, text: Tensor, inputs: Tensor) -> Tensor:
        """(*targets.shape, D) user vectors at each place that a batch of `examples` asks for."""
        ...

    def forward(self, items: ItemVectors, text: Tensor, history_rows: Tensor, about: Words | None = None) -> Tensor:
        """(B, D) from (N, E) text vectors and (B, H) item rows, most recent first, NO_ITEM as padding.

        Args:
            about: what is known of each user, in words, for a tower that reads them.
        """
        ...


class RecencyTower(nn.Module):
    """User vectors as a weighted sum over the last items.

    The items of a history have maps and residuals of their own: what follows an item is not what
    resembles it. No language model runs at request time.
    """

    def __init__(
        self,
        n_items: int,
        text_map: Tensor,
        *,
        residual_dim: int,
        join: Join,
        history_items: int,
        dropout: float,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.join, self.history_items, self.dropout, self.sparse = join, history_items, dropout, sparse
        self.text_map = LinearMap(text_map)
        self.residual = nn.Parameter(torch.randn(n_items, residual_dim) * RESIDUAL_SPREAD)
        decay = torch.log(0.7 ** torch.arange(history_items, dtype=torch.float32))
        self.log_text_weight = nn.Parameter(decay.clone())
        self.log_residual_weight = nn.Parameter(decay.clone())
        self.log_text_scale = nn.Parameter(torch.tensor(10.0).log())
        self.log_residual_scale = nn.Parameter(torch.tensor(1.0).log())

    def examples(self, train: Histories) -> Examples:
        """See UserTower."""
        return Positions.of(train, self.history_items)

    def vectors_at(self, items: ItemVectors, text: Tensor, inputs: Tensor) -> Tensor:
        """See UserTower."""
        return self.forward(items, text, inputs)

    def forward(self, items: ItemVectors, text: Tensor, history_rows: Tensor, about: Words | None = None) -> Tensor:
        """See UserTower."""
        present = (history_rows != NO_ITEM).float()
        rows, width = history_rows.clamp(min=0), history_rows.shape[1]
        text_weight = _unit(self.log_text_weight[:width], present) * self.log_text_scale.exp()
        residual_weight = _unit(self.log_residual_weight[:width], present) * self.log_residual_scale.exp()
        residual = nn.functional.embedding(rows, self.residual, sparse=self.sparse)
        residual = nn.functional.dropout(residual, self.dropout, self.training)
        mapped = self.text_map(_weighted_sum(text_weight, text[rows]))
        ones = mapped.new_ones(len(rows), 1)
        return torch.cat([joined(self.join, mapped, _weighted_sum(residual_weight, residual)), ones], dim=1)


def _unit(log_weight: Tensor, present: Tensor) -> Tensor:
    """(B, H) weights of the items that are present, scaled to length 1."""
    weight = log_weight.exp() * present
    length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    unit: Tensor = weight / length.clamp(min=1e-6)
    return unit


def _weighted_sum(weight: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("bh,bhd->bd", weight, vectors)
