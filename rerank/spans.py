"""Where prompts lie in a row of tokens, and what layers have made of prefixes before."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

CPU = torch.device("cpu")


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

    @property
    def tokens(self) -> int:
        """V + P, virtual ones included."""
        return self.layers[0][0].shape[1]


@dataclass(frozen=True, eq=False)
class Span:
    """Where one prompt lies in a row.

    Attributes:
        start: its first token.
        prefix: tokens of its prefix that are in the row; 0 where it is remembered.
        lengths: (k,) tokens of each candidate, none 0.
        segment: number of its prefix among the segments of the row; its candidates follow.
        remembered: the states of its prefix from before.
        device: where the places below are, each of them made once for all layers.
    """

    start: int
    prefix: int
    lengths: npt.NDArray[np.int64]
    segment: int
    remembered: PrefixStates | None = None
    device: torch.device = CPU

    @property
    def end(self) -> int:
        """Behind its last token."""
        return self.start + self.prefix + int(self.lengths.sum())

    @cached_property
    def padded(self) -> torch.Tensor:
        """(k, T) int64 places of the candidates' tokens behind the prefix; beyond a candidate's end, its last one."""
        ends = np.cumsum(self.lengths)
        steps = np.arange(int(self.lengths.max(initial=0)))
        return self._there(np.minimum((ends - self.lengths)[:, None] + steps, ends[:, None] - 1))

    @cached_property
    def flat(self) -> torch.Tensor:
        """(C,) int64: where each token of the candidates stands in `padded`, read row by row."""
        width = int(self.lengths.max(initial=0))
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        return self._there(rows * width + np.arange(len(rows)) - starts)

    @cached_property
    def beyond(self) -> torch.Tensor:
        """(C, T) true where a candidate has no such token."""
        lengths = np.repeat(self.lengths, self.lengths)
        return self._there(np.arange(int(self.lengths.max(initial=0))) >= lengths[:, None])

    @cached_property
    def later(self) -> torch.Tensor:
        """(C, T) true where the token of the same candidate stands further back, or is none."""
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        own = np.arange(len(starts)) - starts
        return self.beyond | self._there(np.arange(int(self.lengths.max(initial=0))) > own[:, None])

    def _there(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)
