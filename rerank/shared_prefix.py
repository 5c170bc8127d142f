"""Attention over rows in which candidates share a prefix: what a mask would say, without the masked products.

With a mask, k candidates of T tokens behind P tokens of prefix cost (P + kT)² products in every head, nearly all of
them thrown away. Here the prefix attends to itself (P²), each candidate to the prefix (kT · P) and to itself (k · T²),
under one softmax.

On a GPU one masked call for all prompts, side by side, is faster than many small products (`rerank.blocks`).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from rerank.blocks import Blocks, too_uneven
from rerank.spans import PrefixStates, Span

NAME = "shared_prefix"
"""Of the attention, as transformers' `attn_implementation`."""


@dataclass(eq=False)
class Row:
    """A row of prompts under way through a model.

    Attributes:
        spans: its prompts.
        causal: whether no token may see a later one.
        remember: whether keys and values of the prefixes are kept.
        in_blocks: whether one masked call is made for all prompts, unless they are too different in length.
        kept: layer → those of each span, where they are kept.
    """

    spans: tuple[Span, ...]
    causal: bool
    remember: bool = False
    in_blocks: bool = False
    kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    _blocks: Blocks | None = None

    def prefix_states(self, place: int) -> PrefixStates:
        """Of the prompt at `place`, after a pass with `remember`."""
        pairs = (self.kept[layer][place] for layer in sorted(self.kept))
        return PrefixStates(tuple((key.clone(), value.clone()) for key, value in pairs))

    def blocks(self, virtual: int) -> Blocks | None:
        """The same for all layers, which have equally many virtual tokens; None where prompts are taken one by one."""
        if self.in_blocks and self._blocks is None:
            self.in_blocks = not too_uneven(self.spans)
            self._blocks = Blocks.of(self.spans, causal=self.causal, virtual=virtual) if self.in_blocks else None
        return self._blocks


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    row: Row,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """For transformers' AttentionInterface.

    Args:
        module: the layer's attention.
        query: (1, H, L, d).
        key: (1, h, V + L, d), h a divisor of H: every H / h neighbouring heads share one; V virtual tokens first.
        value: like `key`.
        attention_mask: None; who sees whom follows from `row`.
        scaling: factor of the products.
        row: what lies in the L tokens.

    Returns:
        (1, L, H, d), and None for the weights.
    """
    # Keys beyond the queries' number come first: virtual tokens, which every token sees.
    virtual = key.shape[2] - query.shape[2]
    layer = int(getattr(module, "layer_idx", None) or 0)
    pair = key[0], value[0]
    blocks = row.blocks(virtual)
    seen = [_seen(span, pair, layer, virtual) for span in row.spans] if row.remember or blocks is None else []
    if row.remember:
        row.kept[layer] = seen
    if blocks is not None:
        remembered = [span.remembered.layers[layer] for span in row.spans if span.remembered is not None]
        return blocks.attend(query[0], pair, remembered, scaling=scaling)[None], None
    parts: list[torch.Tensor] = []
    for span, known in zip(row.spans, seen, strict=True):
        own_query = query[:, :, span.start : span.end]
        behind = slice(virtual + span.start + span.prefix, virtual + span.end)
        if span.prefix:
            parts.append(_prefix(own_query[:, :, : span.prefix], *known, causal=row.causal, scaling=scaling))
        if len(span.lengths):
            own = pair[0][:, behind], pair[1][:, behind]
            parts.append(_candidates(own_query[0, :, span.prefix :] * scaling, own, known, span, causal=row.causal))
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous(), None


def _seen(
    span: Span, pair: tuple[torch.Tensor, torch.Tensor], layer: int, virtual: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, (h, V + P, d) each, that all tokens of a prompt see, from those of the row (h, V + L, d)."""
    if span.remembered is not None:
        return span.remembered.layers[layer]
    inside = slice(virtual + span.start, virtual + span.start + span.prefix)
    key, value = (torch.cat([whole[:, :virtual], whole[:, inside]], dim=1) for whole in pair)
    return key, value


def _prefix(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scaling: float
) -> torch.Tensor:
    """(H, P, d) for the P tokens of a prefix: queries (1, H, P, d), keys and values (h, V + P, d)."""
    virtual = key.shape[1] - query.shape[2]
    mask = None
    if causal and virtual:
        mask = torch.ones(query.shape[2], key.shape[1], dtype=torch.bool, device=query.device).tril(virtual)
    return F.scaled_dot_product_attention(
        query,
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != len(key),
    )[0]


def _candidates(
    query: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    prefix: tuple[torch.Tensor, torch.Tensor],
    span: Span,
    *,
    causal: bool,
) -> torch.Tensor:
    """(H, C, d) for the C tokens of all candidates: scaled queries (H, C, d), keys and values (h, C, d), (h, P, d)."""
    (key, value), (prefix_key, prefix_value) = own, prefix
    heads, tokens, width = query.shape
    kv_heads, groups = len(key), heads // len(key)
    padded, flat = span.padded, span.flat
    hidden = span.later if causal else span.beyond
    n, longest = padded.shape
    grouped = query.reshape(kv_heads, groups * tokens, width)
    to_prefix = grouped @ prefix_key.transpose(1, 2)  # (h, g·C, P)
    padded_query = query.view(kv_heads, groups, tokens, width)[:, :, padded]  # (h, g, k, T, d)
    padded_query = padded_query.transpose(1, 2).reshape(kv_heads, n, groups * longest, width)
    to_own = padded_query @ key[:, padded].transpose(2, 3)  # (h, k, g·T, T)
    to_own = to_own.view(kv_heads, n, groups, longest, longest).transpose(1, 2)
    to_own = to_own.reshape(kv_heads, groups, n * longest, longest)[:, :, flat]  # (h, g, C, T)
    to_own = to_own.masked_fill(hidden, float("-inf"))
    both = torch.cat([to_prefix.view(kv_heads, groups, tokens, -1), to_own], dim=-1).softmax(dim=-1)
    size = to_prefix.shape[-1]
    found = both[..., :size].reshape(kv_heads, groups * tokens, size) @ prefix_value  # (h, g·C, d)
    own_weights = both.new_zeros(kv_heads, groups, n * longest, longest)
    own_weights = own_weights.index_copy(2, flat, both[..., size:])
    own_weights = own_weights.view(kv_heads, groups, n, longest, longest).transpose(1, 2)
    added = own_weights.reshape(kv_heads, n, groups * longest, longest) @ value[:, padded]  # (h, k, g·T, d)
    added = added.view(kv_heads, n, groups, longest, width).transpose(1, 2)
    added = added.reshape(kv_heads, groups, n * longest, width)[:, :, flat]  # (h, g, C, d)
    return (found.view(kv_heads, groups, tokens, width) + added).reshape(heads, tokens, width)


AttentionInterface.register(NAME, attention)
