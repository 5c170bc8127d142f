"""One way of scoring for every system: all candidates, every user of the holdout, nobody left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from data.schema import NO_ITEM, Candidates, Histories, Holdout, Rows
from eval.metrics import KS, PerUser, membership, metrics_of, relevance_of
from eval.slices import Mask, Slice, slices_of
from store.errors import BadInput

BEYOND_ACCURACY_AT = 10
"""How many places coverage, novelty and repeats look at: what a person is shown."""


@dataclass(frozen=True, slots=True)
class CatalogStats:
    """What training has seen of each item.

    Attributes:
        train_popularity: (N,) int64, how often training users took the item; 0 for a cold one.
        train_users: users with at least one training interaction, at least 1.
    """

    train_popularity: Rows
    train_users: int

    def __post_init__(self) -> None:
        if self.train_users < 1:
            raise ValueError(f"train_users is {self.train_users}; novelty is a share of at least one user")

    @classmethod
    def of(cls, train: Histories, n_items: int) -> Self:
        """Counted from the training histories over a catalog of `n_items`."""
        counts = np.bincount(train.item_rows, minlength=n_items).astype(np.int64)
        return cls(counts, max(1, int((train.lengths > 0).sum())))

    def __len__(self) -> int:
        return len(self.train_popularity)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How one system did on one holdout.

    Attributes:
        part: "validation" or "test".
        users: n, all of the holdout; those without any candidate are among them and score 0.
        unserved: how many of them got no candidate at all.
        depth: K, how long the judged lists were.
        metrics: "ndcg@10" → the mean over all users; also `coverage@10`, `novelty@10`, `repeat@10`.
        per_user: "ndcg@10" → (n,) in the order of the holdout, for paired tests.
        slices: "target_item/cold" → the metrics of that slice, see `eval.slices`.
    """

    part: str
    users: int
    unserved: int
    depth: int
    metrics: Mapping[str, float]
    per_user: Mapping[str, PerUser]
    slices: Mapping[str, Slice]


def evaluate(candidates: Candidates, holdout: Holdout, stats: CatalogStats, *, among: Rows | None = None) -> Evaluation:
    """Score the ranked lists `candidates`, list b for user b of `holdout`.

    A metric at k is left out where k is deeper than the lists, unless every list ended by itself.

    Args:
        among: the item rows that a list could name where these are not the whole catalog, such as the cold items
            alone; coverage is then the share of these.

    Raises:
        BadInput: when the holdout has no user.
        ValueError: when lists cannot be scored (see `eval.metrics.relevance_of`), name unknown rows or others than
            `among`, or when a target is not among them.
    """
    if not len(holdout):
        raise BadInput(
            f"the {holdout.part} part of this split has no user: there is nothing to evaluate. "
            "A user needs at least two interactions to be tested and three to be validated"
        )
    pool = np.ones(len(stats), dtype=np.bool_) if among is None else np.isin(np.arange(len(stats)), among)
    _refuse_unknown_rows(candidates, holdout, pool)
    relevance = relevance_of(candidates, holdout.targets)
    n_items = int(pool.sum())
    ks = _ks_within(candidates, n_items)
    per_user = metrics_of(relevance, holdout.targets.lengths, ks=ks)
    metrics = {name: float(values.mean()) for name, values in per_user.items()}
    if BEYOND_ACCURACY_AT in ks:
        metrics |= _beyond_accuracy(candidates.head(BEYOND_ACCURACY_AT), holdout.histories, stats, n_items)
    return Evaluation(
        part=holdout.part,
        users=len(holdout),
        unserved=int((~candidates.present.any(axis=1)).sum()),
        depth=candidates.depth,
        metrics=metrics,
        per_user=per_user,
        slices=slices_of(candidates.item_rows, holdout, stats.train_popularity, ks=ks),
    )


def candidate_recall(candidates: Candidates, targets: Histories) -> dict[int, float]:
    """Depth → mean recall of the first so many candidates: the most that a reranker of them can reach."""
    depths = sorted({k for k in KS if k < candidates.depth} | {candidates.depth})
    found = metrics_of(relevance_of(candidates, targets), targets.lengths, ks=depths)
    return {depth: float(found[f"recall@{depth}"].mean()) for depth in depths}


def _ks_within(candidates: Candidates, n_items: int) -> tuple[int, ...]:
    complete = candidates.depth >= n_items or bool((candidates.item_rows[:, -1:] == NO_ITEM).all())
    return tuple(k for k in KS if complete or k <= candidates.depth)


def _beyond_accuracy(shown: Candidates, histories: Histories, stats: CatalogStats, n_items: int) -> dict[str, float]:
    """Of the first 10 places of every list, which users without candidates have no part in.

    coverage: share of the candidates that is shown to anybody. novelty: mean −log2 of the share of training
    users who took the shown item (Zhou et al. 2010, PNAS 107, "Solving the apparent diversity-accuracy
    dilemma"), averaged over each list, then over users; an item that nobody took counts as taken once, so
    that it stays finite. repeat: share of the shown places that repeat an item of the user's history.
    """
    present = shown.present
    served = present.any(axis=1)
    found = {"coverage@10": len(np.unique(shown.item_rows[present])) / n_items}
    if served.any():
        surprise = -np.log2(np.clip(stats.train_popularity, 1, stats.train_users) / stats.train_users)  # (N,)
        found["novelty@10"] = _mean_of_lists(surprise[shown.item_rows[served]], present[served])
        repeated = membership(shown.item_rows, histories)
        found["repeat@10"] = float(repeated.sum() / present.sum())
    return found


def _mean_of_lists(values: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> float:
    return float((np.where(present, values, 0.0).sum(axis=1) / present.sum(axis=1)).mean())


def _refuse_unknown_rows(candidates: Candidates, holdout: Holdout, pool: Mask) -> None:
    for where, rows in (("candidates", candidates.item_rows), ("targets", holdout.targets.item_rows)):
        beyond = (rows >= len(pool)) | (rows < NO_ITEM)
        if where == "targets":
            beyond |= rows == NO_ITEM
        if beyond.any():
            raise ValueError(
                f"{int(beyond.sum())} {where} name rows outside the catalog of {len(pool)} items, "
                f"such as {int(rows[beyond][0])}"
            )
        stray = ~pool[rows] & (rows != NO_ITEM)
        if stray.any():
            raise ValueError(
                f"{int(stray.sum())} {where} are not among the {int(pool.sum())} items to choose from, "
                f"such as row {int(rows[stray][0])}"
            )
