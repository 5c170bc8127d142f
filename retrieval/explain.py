"""Why an item was retrieved: the share that each item of the history has in its weighted sum of sources."""

import numpy as np

from data.schema import NO_ITEM, Histories, Rows, Scores
from retrieval.retriever import Retriever

MOST_ITEMS = 30
"""History items that are tried; older ones count for little, and each costs a history to be scored."""


def contributions(retriever: Retriever, history: Rows, item_rows: Rows) -> tuple[Rows, Scores]:
    """How much each item's weighted sum falls when one recent history item is left out (occlusion).

    Args:
        history: (n,) item rows, oldest first.
        item_rows: (K,) the items to be explained.

    Returns:
        (H,) rows of the recent history, most recent first, and (H, K) float32 contributions.
    """
    length = max(retriever.towers.history_items, retriever.transitions.config.history_items)
    recent = Histories.of([history.tolist()]).last(min(length, MOST_ITEMS))[0]
    recent = recent[recent != NO_ITEM]  # (H,)
    if not len(recent):
        return recent, np.zeros((0, len(item_rows)), dtype=np.float32)
    without = [np.delete(history, len(history) - 1 - back).tolist() for back in range(len(recent))]
    scores = retriever.weighted_sums(Histories.of([history.tolist(), *without]), item_rows)  # (H + 1, K)
    return recent, np.asarray(scores[0] - scores[1:], dtype=np.float32)
