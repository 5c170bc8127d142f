"""A causal transformer over item vectors: what the order of a history says about the next item."""

from typing import cast

import torch
from torch import Tensor, nn

from data.schema import NO_ITEM, Histories, Words
from retrieval.examples import Examples, Windows
from retrieval.item_tower import ItemVectors

ROTARY_BASE = 10_000.0
FEW_ITEMS = 64


class SequenceTower(nn.Module):
    """Reads the item tower's own vectors, oldest first, and predicts at every place the item that follows.

    With `text_dim` 0 it is SASRec (Kang & McAuley 2018) trained with softmax over the catalog instead of
    one negative (Klenitskiy & Vasilev 2023). Places are told by rotary angles (Su et al. 2021): only how
    far two items are apart counts, so a window may begin anywhere in a history.

    Args:
        width: dimensions of an item vector without its bias; a multiple of twice `heads`.
        history_items: H, the longest history that is read.
    """

    rotary: Tensor

    def __init__(self, width: int, *, layers: int, heads: int, history_items: int, dropout: float) -> None:
        super().__init__()
        self.history_items, self.width = history_items, width
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("rotary", rotary_angles(history_items, width // heads), persistent=False)

    def examples(self, train: Histories) -> Examples:
        """See UserTower."""
        return Windows.of(train, self.history_items)

    def vectors_at(self, items: ItemVectors, text: Tensor, inputs: Tensor) -> Tensor:
        """(B, T, D) from (B, T) item rows, oldest first, padded behind; a place knows what is before it."""
        hidden = self._read(items, text, inputs)
        for block in self.blocks:
            hidden = block(hidden, self.rotary[: inputs.shape[1]])
        hidden = self.norm(hidden)
        return torch.cat([hidden, hidden.new_ones(*inputs.shape, 1)], dim=2)

    def forward(self, items: ItemVectors, text: Tensor, history_rows: Tensor, about: Words | None = None) -> Tensor:
        """See UserTower."""
        length = (history_rows != NO_ITEM).sum(dim=1)
        history_rows = history_rows[:, : max(length.tolist(), default=1) or 1]
        # Most recent first with padding behind → oldest first with padding behind, so the mask stays causal.
        place = torch.arange(history_rows.shape[1], device=history_rows.device)
        turned = (length[:, None] - 1 - place).clamp(min=0)
        inputs = torch.where(place < length[:, None], history_rows.gather(1, turned), NO_ITEM)
        at_last = (length - 1).clamp(min=0)
        rotary = self.rotary[: inputs.shape[1]]
        hidden = self._read(items, text, inputs)
        for block in self.blocks[:-1]:
            hidden = block(hidden, rotary)
        vectors = self.norm(cast(_Block, self.blocks[-1]).at(hidden, rotary, at_last))
        # Nobody's taste is 0; the last dimension stays 1, so that popularity remains.
        return torch.cat([vectors * (length > 0)[:, None], vectors.new_ones(len(inputs), 1)], dim=1)

    def _read(self, items: ItemVectors, text: Tensor, inputs: Tensor) -> Tensor:
        """(B, T, D - 1) vectors of the items at the rows (B, T), each computed once where there are many."""
        if not self.training and inputs.numel() <= FEW_ITEMS:
            # Finding equal ones would take longer.
            found: Tensor = items(text, inputs.clamp(min=0).flatten())[:, :-1] * self.width**0.5
            return found.view(*inputs.shape, self.width)
        rows, places = torch.unique(inputs.clamp(min=0), return_inverse=True)
        table = items(text, rows)[:, :-1]  # (distinct, D - 1)
        hidden: Tensor = self.dropout(nn.functional.embedding(places, table) * self.width**0.5)
        return hidden


class _Block(nn.Module):
    """Attention and feed-forward, each behind a normalisation and beside a skip."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rotary: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        parts = self.query_key_value(self.attention_norm(hidden)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        attended = nn.functional.scaled_dot_product_attention(
            turned(query, rotary), turned(key, rotary), value, is_causal=True
        )
        return self._fed(hidden + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, width))))

    def at(self, hidden: Tensor, rotary: Tensor, places: Tensor) -> Tensor:
        """(B, width): what `forward` gives at one place (B,) of each line, without the work of the others."""
        batch, length, width = hidden.shape
        lines = torch.arange(batch, device=hidden.device)
        normed = self.attention_norm(hidden)
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        asked = nn.functional.linear(normed[lines, places], weight[:width], bias[:width])
        parts = nn.functional.linear(normed, weight[width:], bias[width:]).view(batch, length, 2, self.heads, -1)
        key, value = parts.permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        query = turned(asked.view(batch, self.heads, 1, -1), rotary[places][:, None, None])
        before = torch.arange(length, device=hidden.device) <= places[:, None]
        attended = nn.functional.scaled_dot_product_attention(
            query, turned(key, rotary), value, attn_mask=before[:, None, None]
        )
        return self._fed(hidden[lines, places] + self.dropout(self.out(attended.reshape(batch, width))))

    def _fed(self, hidden: Tensor) -> Tensor:
        fed: Tensor = self.dropout(self.feed_forward(self.forward_norm(hidden)))
        return hidden + fed


def rotary_angles(length: int, head_dim: int) -> Tensor:
    """(length, head_dim) cosines, then sines, of the angle that each pair of dimensions has at each place."""
    speed = ROTARY_BASE ** -(torch.arange(head_dim // 2) / (head_dim // 2))
    angle = torch.arange(length)[:, None] * speed
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def turned(vectors: Tensor, rotary: Tensor) -> Tensor:
    """Vectors (..., T, head_dim) turned by the angles of their places."""
    cosine, sine = rotary.to(vectors.dtype).chunk(2, dim=-1)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
