"""Shared-prefix packing: one history, then all its candidates, one prompt behind the other in one row of tokens.

Every candidate sees the history and itself, the history sees only itself, and positions restart after the
history for each candidate; so each score equals that of the pair (history, candidate) alone. A row holds the
prompts of several users without a token of padding; `rerank.shared_prefix` keeps them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rerank.spans import CPU, PrefixStates, Span

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
        block_items: how many of the oldest items fall out of the history together.
    """

    prefix: Ids
    ages: Ids
    candidates: tuple[Ids, ...]
    cut_candidates: int = 0
    block_items: int = 1

    @property
    def tokens(self) -> int:
        """Of the prefix and all candidates."""
        return len(self.prefix) + sum(map(len, self.candidates))


@dataclass(frozen=True, slots=True)
class Packed:
    """B prompts in one row of L tokens.

    Attributes:
        input_ids: (L,) int64.
        position_ids: (L,) int64; each candidate begins at the length of its prefix.
        segments: (L,) int64, counted through the row: the prefix of the first prompt is 0, its candidates 1, 2, …
        ages: (L,) int64, as in `Prompt`; NO_AGE outside of a prefix.
        oldest: the largest of the ages, or NO_AGE; known here, so that nobody has to wait for a GPU to tell it.
        spans: where each prompt lies.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    ages: torch.Tensor
    oldest: int
    spans: tuple[Span, ...]

    @property
    def candidates(self) -> list[int]:
        """Of each prompt."""
        return [len(span.lengths) for span in self.spans]

    @property
    def candidate_segments(self) -> torch.Tensor:
        """(ΣK,) int64 segments that are candidates, in order."""
        own = [np.arange(len(span.lengths)) + span.segment + 1 for span in self.spans]
        return _row(own, self.input_ids.device)

    @property
    def prefix_segments(self) -> torch.Tensor:
        """(ΣK,) int64 segment of the prefix that each candidate belongs to."""
        own = [np.full(len(span.lengths), span.segment) for span in self.spans]
        return _row(own, self.input_ids.device)

    @property
    def candidate_ends(self) -> torch.Tensor:
        """(ΣK,) int64 places of each candidate's last token."""
        ends = [span.start + span.prefix + np.cumsum(span.lengths) - 1 for span in self.spans]
        return _row(ends, self.input_ids.device)


def pack(
    prompts: Sequence[Prompt],
    remembered: Sequence[PrefixStates | None] | None = None,
    *,
    device: torch.device = CPU,
) -> Packed:
    """Lays prompts out as prefix, candidate 1, candidate 2, …, the next prompt's prefix, …

    Args:
        prompts: B prompts.
        remembered: for each prompt the states of its prefix, which then stays out of the row; None: of nobody.
        device: where the model is that reads them, and all tensors that are made of the row.

    Raises:
        ValueError: when there is no prompt, or a candidate has no token.
    """
    if not prompts:
        raise ValueError("there is nothing to pack: no prompt was given")
    known = remembered or [None] * len(prompts)
    ids, positions, segments, ages, spans = [], [], [], [], []
    start = segment = 0
    for row, (prompt, states) in enumerate(zip(prompts, known, strict=True)):
        lengths = np.array([len(candidate) for candidate in prompt.candidates], dtype=np.int64)
        if not lengths.all():
            raise ValueError(f"candidate {int(np.argmin(lengths))} of prompt {row} has no token")
        inside = 0 if states else len(prompt.prefix)
        ids += [prompt.prefix[:inside], *prompt.candidates]
        positions += [np.arange(inside), *(len(prompt.prefix) + np.arange(length) for length in lengths)]
        segments.append(segment + np.repeat(np.arange(1 + len(lengths)), [inside, *lengths]))
        ages += [prompt.ages[:inside], np.full(lengths.sum(), NO_AGE)]
        spans.append(Span(start, inside, lengths, segment, states, device))
        start, segment = start + inside + int(lengths.sum()), segment + 1 + len(lengths)
    input_ids, position_ids, segment_of, age = (_row(part, device) for part in (ids, positions, segments, ages))
    oldest = max(int(part.max(initial=NO_AGE)) for part in ages)
    return Packed(input_ids, position_ids, segment_of, age, oldest, tuple(spans))


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


def _row(parts: Sequence[Ids], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
