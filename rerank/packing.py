"""Shared-prefix packing: one history, then all its candidates, in one sequence.

Every candidate sees the history and itself, the history sees only itself, and positions restart after the
history for each candidate; so each score equals that of the pair (history, candidate) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

PADDING = -1
PREFIX = 0
"""Segment ids; the candidates of a sequence are its segments 1, 2, …"""

NO_AGE = -1

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one request.

    Attributes:
        prefix: (P,) int64, the history.
        ages: (P,) int64, 0 for tokens of the most recent item, 1 for the one before; NO_AGE for tokens of none.
        candidates: (T_i,) int64 for each candidate, none of them empty.
        cut_candidates: how many candidates lost tokens at their end.
    """

    prefix: Ids
    ages: Ids
    candidates: tuple[Ids, ...]
    cut_candidates: int = 0

    @property
    def tokens(self) -> int:
        """Length of the packed sequence."""
        return len(self.prefix) + sum(map(len, self.candidates))


@dataclass(frozen=True, slots=True)
class Packed:
    """B prompts as one batch, shorter ones padded at their end to the longest, L tokens.

    Attributes:
        input_ids: (B, L) int64.
        position_ids: (B, L) int64; each candidate begins at the length of its prefix.
        segment_ids: (B, L) int64: PREFIX, 1 … k for the candidates, PADDING.
        ages: (B, L) int64, as in `Prompt`; NO_AGE outside the prefix.
        candidates: K, the largest number of candidates in one prompt.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    ages: torch.Tensor
    candidates: int


def pack(prompts: Sequence[Prompt], *, pad_id: int) -> Packed:
    """Lay each prompt out as prefix, candidate 1, candidate 2, …

    Raises:
        ValueError: when there is no prompt, or a candidate has no token.
    """
    if not prompts:
        raise ValueError("there is nothing to pack: no prompt was given")
    length = max(prompt.tokens for prompt in prompts)
    shape = (len(prompts), length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    segment_ids = np.full(shape, PADDING, dtype=np.int64)
    ages = np.full(shape, NO_AGE, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        lengths = np.array([len(prompt.prefix), *map(len, prompt.candidates)], dtype=np.int64)
        if not lengths[1:].all():
            raise ValueError(f"candidate {int(np.argmin(lengths[1:]))} of prompt {row} has no token")
        used = int(lengths.sum())
        segments = np.repeat(np.arange(len(lengths)), lengths)
        starts = np.cumsum(lengths) - lengths
        starts[1:] -= lengths[0]  # positions of a candidate go on from the prefix
        input_ids[row, :used] = np.concatenate([prompt.prefix, *prompt.candidates])
        position_ids[row, :used] = np.arange(used) - starts[segments]
        segment_ids[row, :used] = segments
        ages[row, : lengths[0]] = prompt.ages
    return Packed(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segment_ids=torch.from_numpy(segment_ids),
        ages=torch.from_numpy(ages),
        candidates=max(len(prompt.candidates) for prompt in prompts),
    )


def additive_mask(
    segment_ids: torch.Tensor, *, causal: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Who sees whom: 0 where a query (row) may look at a key (column), the dtype's minimum elsewhere.

    A float mask, since some attention implementations silently misread a boolean one. Padding sees padding, so
    that no row of the softmax is empty.

    Args:
        segment_ids: (B, L) int64.
        causal: for decoders: besides, no token sees a later one.
        dtype: that of the attention's queries.

    Returns:
        (B, 1, L, L) of `dtype`.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    visible = (query == key) | ((key == PREFIX) & (query > PREFIX))
    if causal:
        visible = visible.tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def split_long(prompt: Prompt, *, max_tokens: int) -> list[Prompt]:
    """The prompt in parts of at most `max_tokens`, each with the whole prefix and at least one candidate.

    Exact, since candidates do not see each other. A part exceeds the limit only where the prefix and a single
    candidate do.
    """
    parts: list[Prompt] = []
    taken: list[Ids] = []
    used = len(prompt.prefix)
    for candidate in prompt.candidates:
        if taken and used + len(candidate) > max_tokens:
            parts.append(Prompt(prompt.prefix, prompt.ages, tuple(taken)))
            taken, used = [], len(prompt.prefix)
        taken.append(candidate)
        used += len(candidate)
    return [*parts, Prompt(prompt.prefix, prompt.ages, tuple(taken), prompt.cut_candidates)]
