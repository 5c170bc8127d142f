"""Attention over rows in which candidates share a prefix: what a mask would say, without the masked products.

With a mask, k candidates of T tokens behind P tokens of prefix cost (P + kT)² products in every head, nearly all of
them thrown away. Here the prefix attends to itself (P²), each candidate to the prefix (kT · P) and to itself (k · T²),
under one softmax.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "shared_prefix"
"""Of the attention, as transformers' `attn_implementation`."""


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """What the layers made of a prefix, for candidates that come later.

    Attributes:
        layers: for each layer keys and values, (heads, P, d) each.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for pair in self.layers for tensor in pair)


@dataclass(frozen=True, eq=False)
class Span:
    """Where one prompt lies in a row.

    Attributes:
        start: its first token.
        prefix: tokens of its prefix that are in the row; 0 where it is remembered.
        lengths: (k,) tokens of each candidate, none 0.
        segment: number of its prefix among the segments of the row; its candidates follow.
        remembered: the states of its prefix from before.
    """

    start: int
    prefix: int
    lengths: npt.NDArray[np.int64]
    segment: int
    remembered: PrefixStates | None = None

    @property
    def end(self) -> int:
        """Behind its last token."""
        return self.start + self.prefix + int(self.lengths.sum())

    @cached_property
    def padded(self) -> torch.Tensor:
        """(k, T) int64 places of the candidates' tokens behind the prefix; beyond a candidate's end, its last one."""
        ends = np.cumsum(self.lengths)
        steps = np.arange(int(self.lengths.max(initial=0)))
        return torch.from_numpy(np.minimum((ends - self.lengths)[:, None] + steps, ends[:, None] - 1))

    @cached_property
    def flat(self) -> torch.Tensor:
        """(C,) int64: where each token of the candidates stands in `padded`, read row by row."""
        width = int(self.lengths.max(initial=0))
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        return torch.from_numpy(rows * width + np.arange(len(rows)) - starts)

    @cached_property
    def beyond(self) -> torch.Tensor:
        """(C, T) true where a candidate has no such token."""
        lengths = np.repeat(self.lengths, self.lengths)
        return torch.from_numpy(np.arange(int(self.lengths.max(initial=0))) >= lengths[:, None])

    @cached_property
    def later(self) -> torch.Tensor:
        """(C, T) true where the token of the same candidate stands further back, or is none."""
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        own = np.arange(len(starts)) - starts
        return self.beyond | torch.from_numpy(np.arange(int(self.lengths.max(initial=0))) > own[:, None])


@dataclass(eq=False)
class Row:
    """A row of prompts under way through a model.

    Attributes:
        spans: its prompts.
        causal: whether no token may see a later one.
        remember: whether keys and values of the prefixes are kept.
        kept: layer → those of each span, where they are kept.
    """

    spans: tuple[Span, ...]
    causal: bool
    remember: bool = False
    kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    def prefix_states(self, place: int) -> PrefixStates:
        """Of the prompt at `place`, after a pass with `remember`."""
        pairs = (self.kept[layer][place] for layer in sorted(self.kept))
        return PrefixStates(tuple((key.clone(), value.clone()) for key, value in pairs))


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
    before = key[0, :, :virtual], value[0, :, :virtual]
    key, value = key[:, :, virtual:], value[:, :, virtual:]
    parts: list[torch.Tensor] = []
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = int(getattr(module, "layer_idx", None) or 0)
    for span in row.spans:
        places = slice(span.start, span.end)
        own_query, own_key, own_value = query[:, :, places], key[:, :, places], value[:, :, places]
        behind = slice(span.prefix, None)
        if span.remembered is None:
            inside = own_key[0, :, : span.prefix], own_value[0, :, : span.prefix]
            seen = torch.cat([before[0], inside[0]], dim=1), torch.cat([before[1], inside[1]], dim=1)
        else:
            seen = span.remembered.layers[layer]
        kept.append(seen)
        if span.prefix:
            parts.append(_prefix(own_query[:, :, : span.prefix], *seen, causal=row.causal, scaling=scaling))
        if len(span.lengths):
            found = _candidates(
                own_query[0, :, behind] * scaling,
                (own_key[0, :, behind], own_value[0, :, behind]),
                seen,
                span,
                causal=row.causal,
            )
            parts.append(found)
    if row.remember:
        row.kept[layer] = kept
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous(), None


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
    padded, flat = span.padded.to(query.device), span.flat.to(query.device)
    hidden = (span.later if causal else span.beyond).to(query.device)
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
