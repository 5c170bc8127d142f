"""Where a system does well and where it does not: the same metrics over parts of the holdout.

A slice of users counts all their targets. A slice of targets counts only those, for the users who have one;
a user's other targets are then no hits. With one target a user, both are the same thing.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from data.schema import Histories, Holdout, Rows
from eval.metrics import PerUser, membership, metrics_of

Slice = dict[str, float]
"""`users` and `targets` (counts), then `recall@10`, `ndcg@10` and whatever else of SLICE_METRICS there is."""

Mask = npt.NDArray[np.bool_]

SLICE_METRICS = ("recall@10", "ndcg@10", "recall@100")
LENGTHS = ((0, 0), (1, 4), (5, 9), (10, 49), (50, None))
"""First and last history length of each bucket."""

_SECONDS_A_DAY = 86_400


def slices_of(item_rows: Rows, holdout: Holdout, popularity: Rows, *, ks: Iterable[int]) -> dict[str, Slice]:
    """`"target_item/cold"` → its figures, for every slice that has a target.

    Args:
        item_rows: (n, K) ranked items for the n users of the holdout.
        holdout: who was asked, what they took.
        popularity: (N,) int64, training interactions of each item.
        ks: the depths that the lists allow.
    """
    deep = set(ks)
    wanted = [name for name in SLICE_METRICS if int(name.partition("@")[2]) in deep]
    found = {}
    for name, mask in _masks(holdout, popularity):
        if mask.any():
            found[name] = _slice(item_rows, holdout.targets, mask, wanted)
    return found


def ndcg10_by_slice(item_rows: Rows, holdout: Holdout, cold: Mask) -> dict[str, PerUser]:
    """`"target_item/cold"` → NDCG@10 of each user who has a target there, for what weights are fitted by: cold items
    and history lengths.

    Args:
        item_rows: (n, K) ranked items, K at least 10 unless the lists ended by themselves.
        cold: (N,) true for items that training has not met.
    """
    masks = (*_by_novelty(holdout.targets, cold), *_by_length(holdout))
    return {name: _values(item_rows, holdout.targets, mask, [10])["ndcg@10"] for name, mask in masks if mask.any()}


def _slice(item_rows: Rows, targets: Histories, mask: Mask, wanted: list[str]) -> Slice:
    depths = sorted({int(name.partition("@")[2]) for name in wanted})
    values = _values(item_rows, targets, mask, depths)
    figures = {name: float(values[name].mean()) for name in wanted}
    users = len(np.unique(targets.list_of_row[mask]))
    return {"users": users, "targets": int(mask.sum()), **figures}


def _values(item_rows: Rows, targets: Histories, mask: Mask, depths: list[int]) -> Mapping[str, PerUser]:
    """All metrics of the users who have a target where `mask` (R,) is true."""
    counted = targets.keep(mask)
    places = np.flatnonzero(counted.lengths)
    counted = counted.take(places)
    return metrics_of(membership(item_rows[places], counted), counted.lengths, ks=depths)


def _masks(holdout: Holdout, popularity: Rows) -> Iterator[tuple[str, Mask]]:
    """Each slice's name with (R,), which of the holdout's targets it counts."""
    targets = holdout.targets
    yield from _by_novelty(targets, popularity == 0)
    third = popularity_thirds(popularity)[targets.item_rows]
    for name, number in (("popular", 0), ("middle", 1), ("rare", 2)):
        yield f"target_popularity/{name}", third == number
    yield from _by_length(holdout)
    days = _same_day(holdout)
    if days is not None:
        same, known = days
        yield "day/same", same & known
        yield "day/later", ~same & known


def _by_novelty(targets: Histories, cold: Mask) -> Iterator[tuple[str, Mask]]:
    yield "target_item/warm", ~cold[targets.item_rows]
    yield "target_item/cold", cold[targets.item_rows]


def _by_length(holdout: Holdout) -> Iterator[tuple[str, Mask]]:
    length = holdout.histories.lengths[holdout.targets.list_of_row]
    for first, last in LENGTHS:
        label = f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
        yield f"history_length/{label}", (length >= first) & (True if last is None else length <= last)


def popularity_thirds(popularity: Rows) -> npt.NDArray[np.int8]:
    """(N,) 0 for items that make up the most popular third of training interactions, 1, 2; −1 for cold ones.

    Items of equal popularity stand in the same third: that of the interactions with strictly more popular
    items. So the thirds do not depend on the order of the catalog, and are only about equal in size.
    """
    counts, which = np.unique(popularity, return_inverse=True)
    interactions = np.bincount(which) * counts  # by count, rising
    above = interactions[::-1].cumsum()[::-1] - interactions
    third = np.minimum(3 * above // max(1, int(interactions.sum())), 2)[which]
    return np.where(popularity > 0, third, -1).astype(np.int8)


def _same_day(holdout: Holdout) -> tuple[Mask, Mask] | None:
    """(R,) whether a target is of the UTC day of the last history item, and (R,) whether both are known."""
    histories, targets = holdout.histories, holdout.targets
    if histories.timestamps is None or targets.timestamps is None or not len(histories.timestamps):
        return None
    last = histories.timestamps[np.maximum(histories.offsets[1:] - 1, 0)]
    last = np.where(histories.lengths > 0, last, Histories.NO_TIME)[targets.list_of_row]
    known = (last != Histories.NO_TIME) & (targets.timestamps != Histories.NO_TIME)
    same = last // _SECONDS_A_DAY == targets.timestamps // _SECONDS_A_DAY
    return same, known
