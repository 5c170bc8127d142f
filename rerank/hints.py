"""What retrieval knows of a candidate, as a word that leads its text and is seen by no other candidate."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np

from data.schema import TRANSITIONS, Candidates, Rows

NO_HINT = -1


class Hint(StrEnum):
    """What the word tells."""

    NONE = "none"
    """there is none"""
    RANK = "rank"
    """the place after the first stage"""
    TRANSITIONS = "transitions"
    """how often the item followed those of the history, against the most frequent one of the list"""


WORDS = {Hint.RANK: ("first", "high", "middle", "low"), Hint.TRANSITIONS: ("never", "rarely", "sometimes", "often")}
"""Kind → the words of its codes 0, 1, …"""
RANK_ENDS = (3, 10, 20)
"""Places from 1 at which the first words of a rank end."""
SHARES = (0.1, 0.5)
"""Of the largest transition score of a list: from there on an item followed sometimes, and often."""


def hint_codes(candidates: Candidates) -> Mapping[Hint, Rows]:
    """Kind → (B, K) int64 places in `WORDS`, NO_HINT where nothing is known."""
    shape = candidates.item_rows.shape
    ranks = np.searchsorted(RANK_ENDS, np.arange(1, shape[1] + 1))
    codes = {Hint.RANK: np.broadcast_to(ranks, shape), Hint.TRANSITIONS: np.full(shape, NO_HINT)}
    if TRANSITIONS in candidates.sources:
        followed = np.where(candidates.present, candidates.sources[TRANSITIONS], 0)
        share = followed / np.maximum(followed.max(axis=1, initial=0, keepdims=True), 1e-12)
        codes[Hint.TRANSITIONS] = np.where(followed > 0, 1 + np.searchsorted(SHARES, share, side="right"), 0)
    return {kind: np.where(candidates.present, found, NO_HINT) for kind, found in codes.items()}


def led(texts: Sequence[str], hint: Hint, codes: Sequence[int] | None) -> list[str]:
    """Texts, each behind the word of its code."""
    if hint is Hint.NONE or codes is None:
        return list(texts)
    words = WORDS[hint]
    return [text if code == NO_HINT else f"{words[code]}: {text}" for text, code in zip(texts, codes, strict=True)]
