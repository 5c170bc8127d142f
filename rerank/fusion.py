"""The reranker's score beside the retriever's: weighed on validation, and 0 where it does not help there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.schema import Candidates, Histories
from eval.folds import crossed_ndcg10
from eval.metrics import PerUser, ndcg10
from eval.significance import helps
from fusion.linear import LinearFusion, Transform

RETRIEVAL = "retrieval"
RERANKER = "reranker"
TRANSFORMS = {RETRIEVAL: Transform.RAW, RERANKER: Transform.RAW}


@dataclass(frozen=True)
class FusionRecord:
    """What the choice of the weight rested on.

    Attributes:
        users: validation users.
        ndcg10_without: NDCG@10 of the retrieval order.
        ndcg10_with: NDCG@10 of the fusion, each fold scored by weights fitted on the others.
        used: whether the reranker keeps a weight.
        weights: as fitted on all of them.
    """

    users: int
    ndcg10_without: float
    ndcg10_with: float
    used: bool
    weights: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """A plain dict for logs and cards."""
        return asdict(self)


def fit_rerank_fusion(candidates: Candidates, targets: Histories) -> tuple[LinearFusion, PerUser, FusionRecord]:
    """Fits the weights of retrieval score and reranker score on validation users.

    The reranker's weight is set to 0 unless, by cross-validation over users, the fusion's NDCG@10 is
    higher than that of the retrieval order alone by more than one standard error of their difference:
    by a mere "higher", half of all rerankers that know nothing would be kept.

    Later scores are clipped to the range of these: a text may be written to please a language model, and is not to
    be lifted further than any other ever was.

    Args:
        candidates: in retrieval order, with sources `RETRIEVAL` and `RERANKER`.
        targets: what those users took next.

    Returns:
        The fusion; (B,) each user's gain in NDCG@10 by cross-validation; and what the choice rested on.
    """
    fusion = LinearFusion.fit(candidates, targets, TRANSFORMS)
    without = ndcg10(candidates, targets)
    gains = crossed_gains(candidates, targets)
    used = fusion.weights[RERANKER] > 0 and helps(gains)
    if not used:
        fusion = replace(fusion, weights={RETRIEVAL: 1.0, RERANKER: 0.0})
    if candidates.present.any():
        seen = candidates.sources[RERANKER][candidates.present]
        fusion = replace(fusion, ranges={RERANKER: (float(seen.min()), float(seen.max()))})
    record = FusionRecord(
        users=len(without),
        ndcg10_without=float(without.mean()) if len(without) else 0.0,
        ndcg10_with=float((without + gains).mean()) if len(without) else 0.0,
        used=used,
        weights=dict(fusion.weights),
    )
    return fusion, gains, record


def for_another(fusion: LinearFusion, chosen: Candidates, made: Candidates) -> LinearFusion:
    """The same fusion for a reranker that was trained once more, whose scores may have another scale.

    Weight and range are those of scores that differ as much within a list as they did where the weight was chosen. No
    target is looked at.

    Args:
        fusion: fitted with the reranker of `chosen`.
        chosen: lists with its scores.
        made: the same lists with the scores of the other.
    """
    if not chosen.present.any():
        return fusion
    before, now = (
        np.ma.masked_array(scored.sources[RERANKER].astype(np.float64), ~scored.present) for scored in (chosen, made)
    )
    spread, its_spread = (float(np.sqrt(scores.var(axis=1).mean())) for scores in (before, now))
    if not spread or not its_spread:  # the same score for everything
        return fusion
    factor = its_spread / spread
    weights = {**fusion.weights, RERANKER: fusion.weights[RERANKER] / factor}
    if RERANKER not in fusion.ranges:
        return replace(fusion, weights=weights)
    lowest, highest = (float(now.mean()) + factor * (bound - float(before.mean())) for bound in fusion.ranges[RERANKER])
    return replace(fusion, weights=weights, ranges={**fusion.ranges, RERANKER: (lowest, highest)})


def crossed_gains(
    candidates: Candidates, targets: Histories, transforms: Mapping[str, Transform] = TRANSFORMS
) -> PerUser:
    """(B,) what each user gains in NDCG@10 by a fusion of these sources, its weights fitted on the other folds."""
    reached = crossed_ndcg10(candidates, targets, lambda some, taken: LinearFusion.fit(some, taken, transforms).score)
    return reached - ndcg10(candidates, targets)
