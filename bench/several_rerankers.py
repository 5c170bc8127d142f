"""What the scores of several rerankers are worth beside retrieval's, each alone and together, on validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data.schema import Candidates, Histories
from eval.metrics import PerUser, ndcg10
from eval.significance import helps
from fusion.linear import LinearFusion, Transform
from rerank.fusion import RETRIEVAL, crossed_gains

Names = tuple[str, ...]


@dataclass(frozen=True)
class Several:
    """What every set of rerankers gains, and the fusion of those that earn a weight.

    Attributes:
        without: (B,) NDCG@10 of the retrieval order.
        gains: every set of rerankers → (B,) what each user gains by their fusion, its weights fitted on other users.
        kept: the set that is used; empty where none of them helps.
        weights: of retrieval and every reranker, fitted on all users; 0 for those that are not kept.
    """

    without: PerUser
    gains: Mapping[Names, PerUser]
    kept: Names
    weights: Mapping[str, float]


def fit_several(candidates: Candidates, targets: Histories, rerankers: Sequence[str]) -> Several:
    """Weighs every set of rerankers, and keeps the best of those in which each has earned its place.

    A set is kept only if its fusion gains more than that of every smaller set inside it, retrieval alone among them,
    by more than one standard error of their difference over users: for one reranker this is the rule of
    `fit_rerank_fusion`, and a second one that adds nothing to the first gets weight 0.

    Args:
        candidates: in retrieval order, with the source `RETRIEVAL` and one for each of the rerankers.
        targets: what those users took next.
        rerankers: names of their sources.
    """
    sets = [found for size in range(1, len(rerankers) + 1) for found in combinations(rerankers, size)]
    gains = {found: crossed_gains(candidates, targets, _columns(found)) for found in sets}
    fitted = {found: LinearFusion.fit(candidates, targets, _columns(found)).weights for found in sets}
    without = ndcg10(candidates, targets)
    known = {(): np.zeros(len(without)), **gains}
    good = [
        found
        for found in sets
        if all(fitted[found][name] > 0 for name in found)
        and all(helps(gains[found] - known[smaller]) for smaller in _inside(found))
    ]
    kept = max(good, key=lambda found: float(gains[found].mean()), default=())
    weights = {RETRIEVAL: 1.0, **dict.fromkeys(rerankers, 0.0), **fitted.get(kept, {})}
    return Several(without, gains, kept, weights)


def _columns(names: Names) -> dict[str, Transform]:
    return dict.fromkeys((RETRIEVAL, *names), Transform.RAW)


def _inside(names: Names) -> Iterator[Names]:
    """Every smaller set."""
    for size in range(len(names)):
        yield from combinations(names, size)
