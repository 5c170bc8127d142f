"""Why an item is recommended: history items that raised it, and what each source adds."""

import numpy as np

from data.schema import Candidates, Rows, Scores
from fusion.network import NETWORK
from retrieval.explain import contributions
from retrieval.own_weights import parts_by_source
from retrieval.retriever import Retriever

BECAUSE = 2
"""History items named as reasons for each recommendation."""


def reasons(retriever: Retriever, history: Rows, rows: Rows) -> list[dict[int, float]]:
    """For each of the items at `rows` the history items that raised it most → their shares in all that raised it."""
    recent, parts = contributions(retriever, history, rows)  # (H,), (H, K)
    parts = np.maximum(parts, 0)
    strongest = np.argsort(-parts, axis=0, kind="stable")  # (H, K)
    named: list[dict[int, float]] = []
    for place, whole in enumerate(parts.sum(axis=0)):
        found: dict[int, float] = {}
        for step in strongest[:, place]:
            if parts[step, place] > 0:
                found.setdefault(int(recent[step]), float(parts[step, place] / whole))
        named.append(dict(list(found.items())[:BECAUSE]))
    return named


def lifts(retriever: Retriever, retrieved: Candidates) -> dict[str, Scores]:
    """source → (K,) its share in what lifts each item of one list above the lowest by each source; they add up to 1."""
    parts = {name: part[0] for name, part in parts_by_source(retriever.fusion, retrieved).items()}
    if NETWORK in retrieved.sources:
        parts[NETWORK] = retrieved.sources[NETWORK][0]
    present = retrieved.present[0]
    above = {name: np.where(present, part - part[present].min(initial=np.inf), 0) for name, part in parts.items()}
    whole = np.maximum(sum(above.values(), np.zeros(len(present), dtype=np.float32)), 1e-12)
    return {name: np.asarray(lift / whole, dtype=np.float32) for name, lift in above.items()}
