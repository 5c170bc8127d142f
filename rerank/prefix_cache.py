"""States of histories seen before, so that a user's next request pays for its candidates alone."""

from collections import OrderedDict

import torch

from rerank.packing import Ids
from rerank.spans import PrefixStates

Key = tuple[bytes, torch.dtype | None]


class PrefixCache:
    """Least recently used histories are forgotten beyond a number of bytes.

    A cache belongs to one model with one adapter; the keys hold the tokens of the prefix and the precision.

    Args:
        max_bytes: of all states kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._states: OrderedDict[Key, PrefixStates] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, prefix: Ids, precision: torch.dtype | None) -> PrefixStates | None:
        """The states of this prefix, if they are kept."""
        key = (prefix.tobytes(), precision)
        if key not in self._states:
            return None
        self._states.move_to_end(key)
        return self._states[key]

    def put(self, prefix: Ids, precision: torch.dtype | None, states: PrefixStates) -> None:
        """Keeps these states, unless they alone are too large."""
        key = (prefix.tobytes(), precision)
        if states.bytes > self.max_bytes or key in self._states:
            return
        self._states[key] = states
        self.bytes += states.bytes
        while self.bytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self.bytes -= oldest.bytes

    def clear(self) -> None:
        """Forgets everything."""
        self._states.clear()
        self.bytes = 0
