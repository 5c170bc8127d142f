"""The two towers: item vectors from text ⊕ id residual ⊕ bias, user vectors from the last items taken."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from data.schema import NO_ITEM


class TowerConfig(BaseModel):
    """Sizes and regularisation of both towers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_dim: int = Field(128, ge=1, description="dimensions that the text vector is mapped to")
    residual_dim: int = Field(128, ge=0, description="dimensions learned for each id; 0 for text alone")
    history_items: int = Field(10, ge=1, description="most recent items that make a user vector")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout on id residuals, element by element")
    residual_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of items whose whole residual is dropped in a training step"
    )


class UserTower(Protocol):
    """Turns the last items of users into vectors that are compared with item vectors by inner product."""

    def __call__(self, text: Tensor, history_rows: Tensor) -> Tensor:
        """(N, E) text vectors and (B, H) item rows, most recent first, NO_ITEM as padding → (B, D)."""
        ...


class ItemTower(nn.Module):
    """Item vectors: mapped text ⊕ residual of the id ⊕ bias, so that an item never seen still has its text."""

    def __init__(self, n_items: int, principal: Tensor, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_map = _linear_from(principal)
        self.residual = nn.Parameter(torch.randn(n_items, config.residual_dim) * 0.02)
        self.bias = nn.Parameter(torch.zeros(n_items))

    def forward(self, text: Tensor, rows: Tensor) -> Tensor:
        """Vectors of the items at `rows` (n,), from all text vectors (N, E): (n, text_dim + residual_dim + 1)."""
        residual = self.residual[rows]
        if self.training:
            residual = nn.functional.dropout(residual, self.config.dropout)
            kept = torch.rand(len(rows), 1) >= self.config.residual_dropout
            residual = residual * kept
        return torch.cat([self.text_map(text[rows]), residual, self.bias[rows, None]], dim=1)


class RecencyTower(nn.Module):
    """User vectors as a weighted sum over the last items, with one learned weight for each step back.

    The items of a history have maps and residuals of their own: what follows an item is not what
    resembles it. No language model runs at request time.
    """

    def __init__(self, n_items: int, principal: Tensor, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_map = _linear_from(principal)
        self.residual = nn.Parameter(torch.randn(n_items, config.residual_dim) * 0.02)
        decay = torch.log(0.7 ** torch.arange(config.history_items, dtype=torch.float32))
        self.log_text_weight = nn.Parameter(decay.clone())
        self.log_residual_weight = nn.Parameter(decay.clone())
        self.log_text_scale = nn.Parameter(torch.tensor(10.0).log())
        self.log_residual_scale = nn.Parameter(torch.tensor(1.0).log())

    def forward(self, text: Tensor, history_rows: Tensor) -> Tensor:
        """See UserTower; the last dimension is 1 and meets the item's bias."""
        text_weight, residual_weight, rows = self._weights(history_rows)
        text_sum = _weighted_sum(text_weight, text[rows])
        residual = nn.functional.dropout(self.residual[rows], self.config.dropout, self.training)
        ones = torch.ones(len(rows), 1)
        return torch.cat([self.text_map(text_sum), _weighted_sum(residual_weight, residual), ones], dim=1)

    def parts(self, text: Tensor, history_rows: Tensor) -> Tensor:
        """(B, H, D - 1): what each item of the history adds to the user vector; they sum to it, the 1 aside."""
        text_weight, residual_weight, rows = self._weights(history_rows)
        mapped = self.text_map(text[rows]) * text_weight[:, :, None]
        return torch.cat([mapped, self.residual[rows] * residual_weight[:, :, None]], dim=2)

    def _weights(self, history_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H) weights of text and residual for each place, and (B, H) rows with padding at row 0, weight 0."""
        present = (history_rows != NO_ITEM).float()
        width = history_rows.shape[1]
        text_weight = _unit(self.log_text_weight[:width], present) * self.log_text_scale.exp()
        residual_weight = _unit(self.log_residual_weight[:width], present) * self.log_residual_scale.exp()
        return text_weight, residual_weight, history_rows.clamp(min=0)


class TwoTowers(nn.Module):
    """Both towers over one table of text vectors.

    Args:
        text: (N, E) float32, L2-normalised and mean-centred.
    """

    def __init__(self, text: Tensor, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("text", text, persistent=False)
        principal = principal_directions(text, config.text_dim)
        self.item = ItemTower(len(text), principal, config)
        self.user = RecencyTower(len(text), principal, config)

    text: Tensor

    def logits(self, history_rows: Tensor, rows: Tensor) -> Tensor:
        """Inner products of users (B, H) with the items at `rows` (n,): (B, n)."""
        users = self.user(self.text, history_rows)  # (B, D)
        items = self.item(self.text, rows)  # (n, D)
        return users @ items.T  # type: ignore[no-any-return]

    @torch.no_grad()
    def settle_cold_items(self, train_count: Tensor) -> None:
        """Gives items without a training interaction no residual, and the bias of the rarest ones with.

        Args:
            train_count: (N,) int64 training interactions of each item.
        """
        cold = train_count == 0
        if not cold.any() or cold.all():
            return
        rarest = train_count == train_count[~cold].min()
        self.item.residual[cold] = 0
        self.user.residual[cold] = 0
        self.item.bias[cold] = self.item.bias[rarest].mean()

    @torch.no_grad()
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """(N, D) float32, the vectors to be indexed."""
        self.eval()
        vectors: Tensor = self.item(self.text, torch.arange(len(self.text)))
        return vectors.numpy()

    @torch.no_grad()
    def user_vectors(self, history_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, D) float32 from (B, H) item rows, most recent first."""
        self.eval()
        vectors: Tensor = self.user(self.text, torch.from_numpy(history_rows))
        return vectors.numpy()


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
    return torch.cat([leading, torch.randn(count - len(leading), text.shape[1]) * 0.02])


def _linear_from(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _unit(log_weight: Tensor, present: Tensor) -> Tensor:
    """(B, H) weights of the items that are present, scaled to length 1."""
    weight = log_weight.exp() * present
    length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    unit: Tensor = weight / length.clamp(min=1e-6)
    return unit


def _weighted_sum(weight: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("bh,bhd->bd", weight, vectors)
