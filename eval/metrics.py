"""Ranking metrics, one value for each user; pure functions of who was right in which place.

All take `relevance: (B, K) bool`, true where the item in that place is a target, and `target_count: (B,)`,
how many targets each user has, at least one. A list shorter than k is scored as it stands. Gains are binary.
They agree with trec_eval (through `ir_measures`) and so do their denominators: `recall_at_k` divides by all
targets and not by min(k, targets), and so does `average_precision_at_k` (trec_eval's map_cut).
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from data.schema import NO_ITEM, Candidates, Histories, Rows

KS = (1, 5, 10, 20, 50, 100)

Relevance = npt.NDArray[np.bool_]
PerUser = npt.NDArray[np.float64]

_USERS_AT_ONCE = 16_384  # 16,384 lists of 100 places are 13 MB in float64


def recall_at_k(relevance: Relevance, target_count: Rows, *, k: int) -> PerUser:
    """(B,) share of a user's targets that stand in the first k places."""
    return np.asarray(relevance[:, :k].sum(axis=1) / _counted(relevance, target_count, k))


def hit_rate_at_k(relevance: Relevance, target_count: Rows, *, k: int) -> PerUser:
    """(B,) 1 where at least one target stands in the first k places."""
    _counted(relevance, target_count, k)
    return np.asarray(relevance[:, :k].any(axis=1), dtype=np.float64)


def ndcg_at_k(relevance: Relevance, target_count: Rows, *, k: int) -> PerUser:
    """(B,) sum of 1 / log2(rank + 1) over hits, divided by that of min(k, targets) hits at the top.

    Järvelin and Kekäläinen 2002 in the form of trec_eval's ndcg_cut: rank 1 is discounted by log2(2) = 1.
    """
    counted = _counted(relevance, target_count, k)
    discount = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    ideal = np.cumsum(discount)[np.minimum(counted, k).astype(np.int64) - 1]  # (B,)
    shown = relevance[:, :k]
    return _sum_in_order(shown * discount[: shown.shape[1]]) / ideal


def reciprocal_rank_at_k(relevance: Relevance, target_count: Rows, *, k: int) -> PerUser:
    """(B,) 1 / rank of the first target in the first k places, 0 without one. Its mean is the MRR."""
    _counted(relevance, target_count, k)
    shown = relevance[:, :k]
    if not shown.shape[1]:
        return np.zeros(len(shown))
    return np.where(shown.any(axis=1), 1 / (shown.argmax(axis=1) + 1), 0.0)


def average_precision_at_k(relevance: Relevance, target_count: Rows, *, k: int) -> PerUser:
    """(B,) sum of the precision at each hit in the first k places, over all targets. Its mean is MAP."""
    counted = _counted(relevance, target_count, k)
    shown = relevance[:, :k]
    precision = shown.cumsum(axis=1) / np.arange(1, shown.shape[1] + 1)  # (B, k)
    return _sum_in_order(precision * shown) / counted


METRICS: dict[str, Callable[..., PerUser]] = {
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
    "ndcg": ndcg_at_k,
    "mrr": reciprocal_rank_at_k,
    "map": average_precision_at_k,
}
"""Name in JSON, before `@k`, → the function."""


def ndcg10(candidates: Candidates, targets: Histories) -> PerUser:
    """(B,) NDCG@10 of lists as they stand. Raises as `relevance_of` does."""
    return ndcg_at_k(relevance_of(candidates.head(10), targets), targets.lengths, k=10)


def relevance_of(candidates: Candidates, targets: Histories) -> Relevance:
    """(B, K), true where the item in that place is one of the user's targets.

    Raises:
        ValueError: when the two differ in users, a list names an item twice or goes on after it has ended,
            a present item's score is NaN, or a user's targets are none or repeated.
    """
    _refuse_unscorable(candidates, targets)
    return membership(candidates.item_rows, targets)


def membership(item_rows: Rows, lists: Histories) -> Relevance:
    """(B, K), true where `item_rows` (B, K) names an item that stands in the user's list."""
    if not len(lists.item_rows) or not item_rows.size:
        return np.zeros(item_rows.shape, dtype=np.bool_)
    span = int(max(item_rows.max(), lists.item_rows.max())) + 1
    wanted = np.sort(lists.list_of_row * span + lists.item_rows)  # one number for each pair of user and item
    found = np.empty(item_rows.shape, dtype=np.bool_)
    for start in range(0, len(item_rows), _USERS_AT_ONCE):
        rows = item_rows[start : start + _USERS_AT_ONCE]
        pairs = np.arange(start, start + len(rows))[:, None] * span + rows
        places = np.minimum(np.searchsorted(wanted, pairs), len(wanted) - 1)
        found[start : start + len(rows)] = (wanted[places] == pairs) & (rows != NO_ITEM)
    return found


def per_user_metrics(candidates: Candidates, targets: Histories, *, ks: Iterable[int] = KS) -> dict[str, PerUser]:
    """`"ndcg@10"` → (B,), and so on for every metric and k. Raises as `relevance_of` does."""
    return metrics_of(relevance_of(candidates, targets), targets.lengths, ks=ks)


def metrics_of(relevance: Relevance, target_count: Rows, *, ks: Iterable[int]) -> dict[str, PerUser]:
    """Every metric at every k from relevance (B, K), some users at a time to bound the memory."""
    names = {f"{name}@{k}": (score, k) for name, score in METRICS.items() for k in ks}
    found = {name: np.zeros(len(relevance)) for name in names}
    for start in range(0, len(relevance), _USERS_AT_ONCE):
        part = slice(start, start + _USERS_AT_ONCE)
        for name, (score, k) in names.items():
            found[name][part] = score(relevance[part], target_count[part], k=k)
    return found


def _sum_in_order(values: PerUser) -> PerUser:
    # From the first place on, never pairwise or by BLAS: two systems with the same hits must have the same
    # figure to the last bit, however long their lists are, or a paired test would count them as different.
    return values.cumsum(axis=1)[:, -1] if values.shape[1] else np.zeros(len(values))


def _counted(relevance: Relevance, target_count: Rows, k: int) -> PerUser:
    if k < 1:
        raise ValueError(f"k is {k}; the first places of a list are counted from 1")
    if target_count.shape != relevance.shape[:1]:
        raise ValueError(f"{len(relevance)} lists, but target counts of shape {target_count.shape}")
    if (target_count < 1).any():
        raise ValueError(f"{int((target_count < 1).sum())} users have no target: they cannot be scored")
    return target_count.astype(np.float64)


def _refuse_unscorable(candidates: Candidates, targets: Histories) -> None:
    if len(candidates) != len(targets):
        raise ValueError(f"{len(candidates)} lists of candidates for {len(targets)} users")
    pairs = targets.list_of_row * (int(targets.item_rows.max(initial=0)) + 1) + targets.item_rows
    if len(np.unique(pairs)) != len(pairs):
        raise ValueError("a target stands twice for one user: it would count twice in every metric")
    if (targets.lengths < 1).any():
        raise ValueError(f"{int((targets.lengths < 1).sum())} users have no target: they cannot be scored")
    for start in range(0, len(candidates), _USERS_AT_ONCE):
        part = slice(start, start + _USERS_AT_ONCE)
        _refuse_bad_lists(candidates.item_rows[part], candidates.score[part], start)


def _refuse_bad_lists(item_rows: Rows, score: npt.NDArray[np.float32], first: int) -> None:
    present = item_rows != NO_ITEM
    broken = np.isnan(score) & present
    if broken.any():
        place = int(broken.any(axis=1).argmax())
        raise ValueError(f"{int(broken.sum())} candidates have the score NaN, first in list {first + place}")
    if (present[:, 1:] & ~present[:, :-1]).any():
        raise ValueError("a list of candidates goes on after it has ended")
    ordered = np.sort(item_rows, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)
    if twice.any():
        place = int(twice.any(axis=1).argmax())
        item_row = int(ordered[:, 1:][place][twice[place]][0])
        raise ValueError(f"item row {item_row} stands twice in list {first + place}: it would be paid twice")
