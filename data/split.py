"""A data set divided in time or by items: what may be learnt from, and what is asked."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.cold import ColdItems, Mask
from data.schema import Dataset, Histories, Holdout, Rows, Split
from data.times import told
from data.vocabulary import Vocabulary
from store.errors import BadInput


class SplitKind(StrEnum):
    """How a data set is divided."""

    LEAVE_ONE_OUT = "leave-one-out"
    TEMPORAL = "temporal"
    COLD_ITEMS = "cold-items"


class HeldOut(StrEnum):
    """Which parts are held out of training."""

    TEST_AND_VALIDATION = "test-and-validation"
    VALIDATION = "validation"


class SplitConfig(BaseModel):
    """How a data set is divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SplitKind = Field(
        SplitKind.LEAVE_ONE_OUT,
        description="leave-one-out: each user's last item is the test, the one before it validation; "
        "temporal: one moment for all users; cold-items: some items are unknown in training",
    )
    holdout: HeldOut = Field(
        HeldOut.TEST_AND_VALIDATION,
        description="validation: the test was taken away beforehand, so what is last here is for validation",
    )
    cut_time: int | None = Field(
        None, description="temporal: Unix seconds from which on everything is held out; unset: by test_share"
    )
    cold_items: int | None = Field(
        None,
        ge=1,
        description="cold-items: how many items are for the test, by a hash of their id; unset: by test_share",
    )
    test_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="temporal without cut_time: share of rows from the cut on; cold-items without cold_items: share of "
        "the catalog",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="temporal: share of the rows before the test that is for validation; cold-items: share of the "
        "items that are not for the test",
    )
    min_history: int = Field(
        1, ge=1, description="temporal, cold-items: users of whom fewer interactions are known are not asked"
    )


class SplitReport(BaseModel):
    """How many rows and users went where, and why some went nowhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_rows: int = Field(description="interactions to learn from")
    rows_without_time: int = Field(description="temporal: interactions that are in no part, their time being unknown")
    validation_users: int = Field(description="users asked in validation")
    test_users: int = Field(description="users asked in the test")
    users_without_history: dict[str, int] = Field(
        description="part → users not asked, with fewer than min_history known interactions (cold users)"
    )
    users_without_new_items: dict[str, int] = Field(
        description="part → users not asked, since all they took later they already had"
    )
    repeated_targets: dict[str, int] = Field(description="part → targets asked that are in the user's own history")
    cold_items: int = Field(description="items of the catalog without any interaction in train")
    cold_targets: dict[str, int] = Field(description="part → targets that are cold items")
    validation_from: str | None = Field(description="temporal: UTC time at which validation begins")
    test_from: str | None = Field(description="temporal: UTC time at which the test begins")


@dataclass(slots=True)
class _Tally:
    """What a split leaves out, as it is met."""

    without_history: dict[str, int]
    without_new_items: dict[str, int]
    without_time: int = 0
    validation_from: int | None = None
    test_from: int | None = None


def make_split(dataset: Dataset, config: SplitConfig) -> Split:
    """The split of `split_with_report`, without the time to count what went where."""
    return _divide(dataset, config)[0]


def split_with_report(dataset: Dataset, config: SplitConfig) -> tuple[Split, SplitReport]:
    """Divides every user's history by the rules of `config.kind`.

    Leave one out: a user with one interaction only trains, one with two has no validation. The item asked may be in
    the user's own history, as in the literature; the report counts these.

    Temporal: everything that a user with enough history takes within a window of time is a target, once, unless it is
    in the history. Interactions without time are in no part.

    Cold items: the items of `held_out_items` are out of training with all their interactions. In validation a user
    is asked for those that are for validation, knowing the warm ones; in the test for those of the test, knowing
    all others. A history is a set here: what was taken after a target is in it, too, and no order is needed.

    Raises:
        BadInput: for a temporal split without times, a cut that leaves a part empty, or more cold items than there
            are; for a cold-items split of a log that has in it what was to be taken away beforehand.
    """
    split, tally = _divide(dataset, config)
    cold = cold_items(split, len(dataset.catalog))
    parts = (split.validation, split.test)
    report = SplitReport(
        train_rows=len(split.train.item_rows),
        rows_without_time=tally.without_time,
        validation_users=len(split.validation),
        test_users=len(split.test),
        users_without_history=tally.without_history,
        users_without_new_items=tally.without_new_items,
        repeated_targets={part.part: int(_known(part.targets, part.histories).sum()) for part in parts},
        cold_items=int(cold.sum()),
        cold_targets={part.part: int(cold[part.targets.item_rows].sum()) for part in parts},
        validation_from=None if tally.validation_from is None else told(tally.validation_from),
        test_from=None if tally.test_from is None else told(tally.test_from),
    )
    return split, report


def held_out_items(items: Vocabulary, config: SplitConfig) -> ColdItems:
    """Which items a split of kind cold-items holds out.

    Raises:
        BadInput: when no item is left to learn from.
    """
    test = config.cold_items or _count(len(items), config.test_share)
    return ColdItems.drawn(items, test=test, validation=_count(len(items) - test, config.validation_share))


def next_holdout(dataset: Dataset) -> Holdout:
    """Every user with the whole history and an empty list of targets: what to recommend next, with no answer known.

    What was rated too low to count is with the histories here, and in no other part: there it may be yet to come.
    """
    users, log = np.arange(len(dataset.users), dtype=np.int64), dataset.interactions
    disliked = None if dataset.disliked is None else dataset.disliked.of(dataset.users)
    return Holdout("next", users, replace(log, disliked=disliked), _nothing(len(users), log))


def group_of_users(users: Vocabulary) -> Mask:
    """(U,) true for group B, 20 % of users by a hash of their id, who select models; the others teach the reranker.

    The group of a user depends on the id alone, never on the data set around it.
    """
    digests = (hashlib.sha256(user_id.encode()).digest()[:8] for user_id in users.ids)
    return np.array([int.from_bytes(digest) % 100 >= 80 for digest in digests], dtype=np.bool_)


def cold_items(split: Split, n_items: int) -> Mask:
    """(N,) true for items without any interaction in train."""
    return np.asarray(np.bincount(split.train.item_rows, minlength=n_items) == 0)


def _divide(dataset: Dataset, config: SplitConfig) -> tuple[Split, _Tally]:
    tally = _Tally({}, {})
    if config.kind == SplitKind.TEMPORAL:
        return _temporal(dataset.interactions, config, tally), tally
    if config.kind == SplitKind.COLD_ITEMS:
        cold = held_out_items(dataset.catalog.vocabulary, config)
        return _cold_items(dataset.interactions, cold, config, tally), tally
    return _leave_one_out(dataset.interactions, config), tally


def _leave_one_out(log: Histories, config: SplitConfig) -> Split:
    lengths = log.lengths
    left = log.offsets[1:][log.list_of_row] - 1 - np.arange(len(log.item_rows))  # how many follow in the same list
    if config.holdout == HeldOut.VALIDATION:
        train = log.keep((left > 0) | (lengths == 1)[log.list_of_row])
        return Split(train, _asked(log, "validation", left, 0, lengths >= 2), _empty("test", log))
    held = np.clip(lengths - 1, 0, 2)
    return Split(
        log.keep(left >= held[log.list_of_row]),
        _asked(log, "validation", left, 1, lengths >= 3),
        _asked(log, "test", left, 0, lengths >= 2),
    )


def _asked(log: Histories, part: str, left: Rows, held: int, who: Mask) -> Holdout:
    """The users `who` (U,) are asked for the interaction that `held` others follow, knowing all before it."""
    users = np.flatnonzero(who).astype(np.int64)
    known = log.keep(left > held).take(users).asked_after_last()
    return Holdout(part, users, known, log.keep(left == held).take(users))


def _temporal(log: Histories, config: SplitConfig, tally: _Tally) -> Split:
    if log.timestamps is None or (log.timestamps == Histories.NO_TIME).all():
        raise BadInput("a temporal split needs timestamps, and no interaction has one: use leave-one-out")
    known = log.timestamps != Histories.NO_TIME
    tally.without_time = int((~known).sum())
    log = log.keep(known)
    assert log.timestamps is not None
    times = np.sort(log.timestamps)
    only_validation = config.holdout == HeldOut.VALIDATION
    share = config.validation_share if only_validation else config.test_share
    last_cut = _cut(times, share) if config.cut_time is None else config.cut_time
    if not times[0] < last_cut <= times[-1]:
        raise BadInput(
            f"the cut at {told(last_cut)} leaves nothing on one side: times run from {told(int(times[0]))} to "
            f"{told(int(times[-1]))}; give a cut_time after the first and not after the last"
        )
    if only_validation:
        tally.validation_from = last_cut
        validation = _window(log, "validation", last_cut, None, min_history=config.min_history, tally=tally)
        return Split(log.keep(log.timestamps < last_cut), validation, _empty("test", log))
    first_cut = _cut(times[times < last_cut], config.validation_share)
    if first_cut <= times[0]:
        raise BadInput(
            f"validation from {told(first_cut)} leaves nothing to learn from: times begin at {told(int(times[0]))}; "
            "give a smaller validation_share or a later cut_time"
        )
    tally.validation_from, tally.test_from = first_cut, last_cut
    return Split(
        log.keep(log.timestamps < first_cut),
        _window(log, "validation", first_cut, last_cut, min_history=config.min_history, tally=tally),
        _window(log, "test", last_cut, None, min_history=config.min_history, tally=tally),
        before_test=log.keep(log.timestamps < last_cut),
    )


def _cold_items(log: Histories, cold: ColdItems, config: SplitConfig, tally: _Tally) -> Split:
    train = log.keep(cold.warm[log.item_rows])
    if not len(train.item_rows):
        raise BadInput(
            f"none of the {len(log.item_rows):,} interactions is with one of the {int(cold.warm.sum()):,} warm items: "
            "there is nothing to learn from; give more interactions or hold out fewer items"
        )
    for_test = cold.test[log.item_rows]
    only_validation = config.holdout == HeldOut.VALIDATION
    if only_validation and for_test.any():
        raise BadInput(
            f"split.holdout=validation says that the test was taken away beforehand, but {int(for_test.sum()):,} "
            f"interactions are with its {int(cold.test.sum()):,} items: use test-and-validation"
        )
    for_validation = log.keep(cold.validation[log.item_rows])
    validation = _questions("validation", train, for_validation, min_history=config.min_history, tally=tally)
    if only_validation:
        return Split(train, validation, _empty("test", log))
    test = _questions("test", log.keep(~for_test), log.keep(for_test), min_history=config.min_history, tally=tally)
    return Split(train, validation, test)


def _count(total: int, share: float) -> int:
    return max(round(total * share), 1)


def _cut(times: Rows, share: float) -> int:
    """The moment from which on the last `share` of sorted `times` lies; all rows of that very moment go with it."""
    return int(times[min(int(len(times) * (1 - share)), len(times) - 1)])


def _window(log: Histories, part: str, start: int, end: int | None, *, min_history: int, tally: _Tally) -> Holdout:
    """All users with something new to them in [start, end), knowing everything before `start`."""
    times = log.timestamps
    assert times is not None
    later = log.keep((times >= start) & ((times < end) if end is not None else True))
    return _questions(part, log.keep(times < start), later, min_history=min_history, tally=tally)


def _questions(part: str, past: Histories, later: Histories, *, min_history: int, tally: _Tally) -> Holdout:
    """All users whose list in `later` has something that is not in `past`, which is what is known of them."""
    new = later.keep(~_known(later, past))
    new = new.keep(_first_of_its_kind(new))
    enough, active = past.lengths >= min_history, later.lengths > 0
    tally.without_history[part] = int((active & ~enough).sum())
    tally.without_new_items[part] = int((active & enough & (new.lengths == 0)).sum())
    users = np.flatnonzero(enough & (new.lengths > 0)).astype(np.int64)
    return Holdout(part, users, past.take(users), new.take(users))


def _known(targets: Histories, histories: Histories) -> Mask:
    """(R,) true for the entries of `targets` whose item is in the history of the same place."""
    if not len(targets.item_rows) or not len(histories.item_rows):
        return np.zeros(len(targets.item_rows), dtype=np.bool_)
    width = int(max(targets.item_rows.max(), histories.item_rows.max())) + 1
    wanted, place_of = np.unique(_pair_keys(targets, width), return_inverse=True)
    had = _pair_keys(histories, width)
    # Targets are few and histories long: this way round, only the few are sorted.
    places = np.minimum(np.searchsorted(wanted, had), len(wanted) - 1)
    found = np.zeros(len(wanted), dtype=np.bool_)
    found[places[wanted[places] == had]] = True
    return found[place_of]


def _first_of_its_kind(lists: Histories) -> Mask:
    """(R,) true where an item stands in its list for the first time."""
    width = int(lists.item_rows.max(initial=0)) + 1
    first = np.zeros(len(lists.item_rows), dtype=np.bool_)
    first[np.unique(_pair_keys(lists, width), return_index=True)[1]] = True
    return first


def _pair_keys(lists: Histories, width: int) -> Rows:
    return lists.list_of_row * width + lists.item_rows


def _empty(part: str, log: Histories) -> Holdout:
    return Holdout(part, np.zeros(0, dtype=np.int64), _nothing(0, log), _nothing(0, log))


def _nothing(count: int, like: Histories) -> Histories:
    none = np.zeros(0, dtype=np.int64)
    times = None if like.timestamps is None else none
    ratings = None if like.ratings is None else np.zeros(0, dtype=np.float32)
    about = None if like.about is None else np.full(count, "", dtype=np.object_)
    return Histories(none, np.zeros(count + 1, dtype=np.int64), times, ratings=ratings, about=about)
