"""The one figure by which retrieval selects models while it fits them."""

from collections.abc import Callable

import numpy as np

from data.schema import Histories, Holdout

SCORES_AT_ONCE = 32_000_000
"""Scores held in memory at a time, 128 MB of float32."""
IDEAL = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2, 12)))])
"""(11,) DCG@10 of a list that has so many targets, and nothing else, at its top."""


def catalog_ndcg10(scores: Callable[[Histories], np.ndarray], asked: Holdout, *, n_items: int) -> float:
    """NDCG@10 over the whole catalog of what each user took next, known items left out where lists do so.

    A tie with a target counts against it, so constant scores earn nothing; nor does an item that is
    known already earn anything where it cannot be in the list. Reports use eval.protocol; this is the cheap,
    equal-valued figure that training watches.

    Args:
        scores: maps b histories to (b, N) float32.
        asked: users with at least one target each: the next item, or everything after a moment.

    Raises:
        FloatingPointError: when a score is NaN.
    """
    gains: list[np.ndarray] = []
    per_user = -(-len(asked.targets.item_rows) // max(1, len(asked)))
    at_once = max(1, SCORES_AT_ONCE // (n_items * max(1, per_user)))
    for start in range(0, len(asked), at_once):
        part = asked.take(np.arange(start, min(start + at_once, len(asked))))
        user, target = part.targets.list_of_row, part.targets.item_rows  # (T,) each
        scored = np.array(scores(part.histories), dtype=np.float32)  # (b, N), a copy to write into
        if np.isnan(scored).any():
            raise FloatingPointError("a validation score is NaN")
        if asked.exclude_known:
            scored[part.histories.list_of_row, part.histories.item_rows] = -np.inf
        wanted = scored[user, target]
        rank = (scored[user] >= wanted[:, None]).sum(axis=1)
        shown = (rank <= 10) & (wanted > -np.inf)
        earned = np.bincount(user, np.where(shown, 1 / np.log2(rank + 1.0), 0.0), minlength=len(part))
        gains.append(earned / IDEAL[np.minimum(part.targets.lengths, 10)])
    return float(np.concatenate(gains).mean()) if gains else 0.0
