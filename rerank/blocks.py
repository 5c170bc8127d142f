"""The prompts of a row side by side, padded to one length, so that one masked attention call serves them all.

On a GPU the many small products of `shared_prefix` wait for each other longer than they take; there this is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from rerank.spans import Span

MOST_PADDING = 3.0
"""Pairs of tokens in blocks over those of the prompts themselves; beyond it, prompts are taken one by one."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """B prompts side by side, padded to Q tokens and K keys.

    Keys come from a bank: V virtual tokens, then the remembered prefixes one behind the other, then the row.

    Attributes:
        queries: (B, Q) int64 places in the row; beyond a prompt's end, its last token.
        keys: (B, K) int64 places in the bank; beyond a prompt's end, its last token.
        visible: (B, 1, Q, K) whether a query sees a key.
        flat: (L,) int64: where each token of the row stands in `queries`, read row by row.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    visible: torch.Tensor
    flat: torch.Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], *, causal: bool, virtual: int) -> "Blocks":
        """For the spans of one row, each with a token in it."""
        own = np.array([span.end - span.start for span in spans])
        before = np.array([span.remembered.tokens if span.remembered else virtual for span in spans])
        remembered = np.array([span.remembered.tokens if span.remembered else 0 for span in spans])
        banks = np.where(remembered > 0, virtual + np.cumsum(remembered) - remembered, 0)
        starts = virtual + remembered.sum() + np.array([span.start for span in spans])
        steps, places = np.arange(own.max()), np.arange((before + own).max())
        at = np.minimum(steps, own[:, None] - 1)  # (B, Q)
        key_at = np.minimum(places, (before + own)[:, None] - 1)  # (B, K)
        outside = key_at < before[:, None]
        keys = np.where(outside, banks[:, None] + key_at, (starts - before)[:, None] + key_at)
        # 0 for what every token of a prompt sees, 1, 2, … for its candidates, -1 for padding.
        segments = np.zeros(keys.shape, dtype=np.int64)
        for place, span in enumerate(spans):
            behind = slice(before[place] + span.prefix, before[place] + own[place])
            segments[place, behind] = 1 + np.repeat(np.arange(len(span.lengths)), span.lengths)
        padded = np.where(places < (before + own)[:, None], segments, -1)
        asking = np.take_along_axis(segments, before[:, None] + at, axis=1)

        def there(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(spans[0].device)

        seen, asks = there(padded)[:, None], there(asking)[:, :, None]
        visible = (seen == 0) | (seen == asks)  # (B, Q, K)
        if causal:
            visible &= there(places)[None, None] <= there(before[:, None] + at)[:, :, None]
        rows = np.repeat(np.arange(len(spans)), own)
        flat = rows * len(steps) + np.concatenate([np.arange(count) for count in own])
        queries = np.array([span.start for span in spans])[:, None] + at
        return cls(there(queries), there(keys), visible[:, None], there(flat))

    def attend(
        self,
        query: torch.Tensor,
        pair: tuple[torch.Tensor, torch.Tensor],
        remembered: Sequence[tuple[torch.Tensor, torch.Tensor]],
        *,
        scaling: float,
    ) -> torch.Tensor:
        """(L, H, d) from queries (H, L, d), keys and values (h, V + L, d) and those (h, V + P, d) of known prefixes."""
        virtual = pair[0].shape[1] - query.shape[1]
        groups = len(query) // len(pair[0])

        def side(which: int) -> torch.Tensor:
            whole = pair[which]
            known = [states[which] for states in remembered]
            bank = torch.cat([whole[:, :virtual], *known, whole[:, virtual:]], dim=1)
            # Shared heads are written out: with a mask, the fast kernels know no sharing.
            return _gathered(bank, self.keys).repeat_interleave(groups, dim=1)

        asking = _gathered(query, self.queries)
        found = F.scaled_dot_product_attention(
            asking, side(0), side(1), attn_mask=self.visible, scale=scaling
        )  # (B, H, Q, d)
        return found.transpose(1, 2).flatten(0, 1).index_select(0, self.flat)


def too_uneven(spans: Sequence[Span]) -> bool:
    """Whether side by side these prompts are mostly padding."""
    asking = np.array([span.end - span.start for span in spans])
    seen = asking + [span.remembered.tokens if span.remembered else 0 for span in spans]
    return bool(len(spans) * asking.max() * seen.max() > MOST_PADDING * (asking * seen).sum())


def _gathered(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, H, T, d) of (H, N, d) at (B, T) places."""
    heads, _, width = states.shape
    return states.index_select(1, places.flatten()).view(heads, *places.shape, width).transpose(0, 1)
