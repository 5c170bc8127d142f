"""Why an item was retrieved: the share that each item of the history has in its fused score."""

import numpy as np
import torch

from data.schema import NO_ITEM, Histories, Rows, Scores
from fusion.linear import LOG_FLOOR
from retrieval.retriever import TEXT, TOWERS, TRANSITIONS, Retriever


def contributions(retriever: Retriever, history: Rows, item_rows: Rows) -> tuple[Rows, Scores]:
    """What each recent history item adds to each item's score.

    The towers and the text profile are sums over the history, so their parts are exact; the logarithm
    of the transitions is divided among the history items in the ratio of their counts.

    Args:
        history: (n,) item rows, oldest first.
        item_rows: (K,) the items to be explained.

    Returns:
        (H,) rows of the recent history, most recent first, and (H, K) float32 contributions.
    """
    config, fusion = retriever.config, retriever.fusion
    length = max(config.towers.history_items, retriever.transitions.config.history_items)
    recent = Histories.of([history.tolist()]).last(length)[0]
    recent = recent[recent != NO_ITEM]  # (H,)
    total = np.zeros((len(recent), len(item_rows)), dtype=np.float32)
    if not len(recent):
        return recent, total
    in_tower = recent[: config.towers.history_items]
    with torch.no_grad():
        parts = retriever.towers.user.parts(retriever.towers.text, torch.from_numpy(in_tower[None, :]))[0].numpy()
    items = retriever.item_vectors[item_rows]  # (K, D)
    total[: len(in_tower)] += fusion.weights[TOWERS] * (parts @ items[:, :-1].T)
    counted = recent[: retriever.transitions.config.history_items]
    decay = retriever.transitions.config.history_decay ** np.arange(len(counted), dtype=np.float32)
    following = decay[:, None] * retriever.transitions.weights[counted][:, item_rows].toarray()  # (h, K)
    both = following.sum(axis=0)
    logs = np.log(both / fusion.typical[TRANSITIONS] + LOG_FLOOR) - np.log(LOG_FLOOR)
    total[: len(counted)] += fusion.weights[TRANSITIONS] * logs * following / np.maximum(both, 1e-9)
    profile = decay[:, None] * retriever.text[counted]  # (h, E)
    length_of_sum = max(float(np.linalg.norm(profile.sum(axis=0))), 1e-6)
    total[: len(counted)] += fusion.weights[TEXT] / length_of_sum * (profile @ retriever.text[item_rows].T)
    return recent, total
