"""Item vectors: mapped text ⊕ residual of the id ⊕ bias, so that an item never seen still has its text."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn

RESIDUAL_SPREAD = 0.02
"""Standard deviation of residuals before training."""

ItemVectors = Callable[[Tensor, Tensor], Tensor]
"""Text vectors (N, E) and rows (n,) → (n, D): an item tower, or a table of what it gave."""


class Join(StrEnum):
    """How the mapped text and the residual of an id become one vector."""

    BESIDE = "beside"
    """in dimensions of their own"""
    SUM = "sum"
    """in the same dimensions: half as wide, hence half the work of whatever reads it"""


class ItemTower(nn.Module):
    """Item vectors of D dimensions, the last of which is the bias.

    Args:
        n_items: N.
        text_map: (text_dim, E), the map of text vectors before training; text_dim may be 0.
        residual_dim: dimensions learned for each id; 0 for text alone.
        join: SUM needs text_dim = residual_dim, or one of them 0.
        dropout: on residuals, element by element.
        residual_dropout: share of items whose whole residual is dropped in a training step.
        sparse: give the residuals sparse gradients, for catalogs of which a step meets a small part.
    """

    def __init__(
        self,
        n_items: int,
        text_map: Tensor,
        *,
        residual_dim: int,
        join: Join,
        dropout: float,
        residual_dropout: float,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.join = join
        self.dropout, self.residual_dropout, self.sparse = dropout, residual_dropout, sparse
        self.text_map = LinearMap(text_map)
        self.residual = nn.Parameter(torch.randn(n_items, residual_dim) * RESIDUAL_SPREAD)
        self.bias = nn.Parameter(torch.zeros(n_items, 1))

    @property
    def dimension(self) -> int:
        """D, the bias included."""
        return joined_width(self.join, self.text_map.out_features, self.residual.shape[1]) + 1

    def forward(self, text: Tensor, rows: Tensor) -> Tensor:
        """(n, D) vectors of the items at `rows` (n,), from all text vectors (N, E)."""
        residual = nn.functional.embedding(rows, self.residual, sparse=self.sparse)
        if self.training:
            residual = nn.functional.dropout(residual, self.dropout)
            kept = torch.rand(len(rows), 1, device=rows.device) >= self.residual_dropout
            residual = residual * kept
        bias = nn.functional.embedding(rows, self.bias, sparse=self.sparse)
        return torch.cat([joined(self.join, self.text_map(text[rows]), residual), bias], dim=1)


def joined(join: Join, mapped: Tensor, residual: Tensor) -> Tensor:
    """(n, D - 1) vectors from their mapped text and their residuals, either of which may be 0 wide."""
    if join is Join.SUM and mapped.shape[1] and residual.shape[1]:
        return mapped + residual
    return torch.cat([mapped, residual], dim=1)


def joined_width(join: Join, text_dim: int, residual_dim: int) -> int:
    """Dimensions of an item vector without its bias."""
    return max(text_dim, residual_dim) if join is Join.SUM else text_dim + residual_dim


class LinearMap(nn.Module):
    """A map without offset that begins as `weight` (out, in); unlike nn.Linear it takes 0 outputs without a warning."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    @property
    def out_features(self) -> int:
        """Dimensions of what comes out."""
        return len(self.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return nn.functional.linear(vectors, self.weight)


def principal_directions(text: Tensor, count: int) -> Tensor:
    """(count, E): the leading right singular vectors of the text table, a start that keeps cosine similarity.

    Directions beyond the rank of the table are drawn at random and small.
    """
    # Through the (E, E) products of the columns: many times cheaper than a decomposition of N rows.
    wide = text.double()
    strength, directions = torch.linalg.eigh(wide.T @ wide)  # rising
    rank = int((strength > 1e-9 * strength[-1]).sum())
    leading: Tensor = directions.T.flip(0)[: min(count, rank)].float()
    if len(leading) == count:
        return leading
    return torch.cat([leading, torch.randn(count - len(leading), text.shape[1]) * RESIDUAL_SPREAD])
