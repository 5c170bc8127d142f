"""What a user has taken: the log of the release, and the events that came since."""

from dataclasses import dataclass

import numpy as np

from data.schema import Dataset, Disliked, Histories, Rows
from recommend.events import Events


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a user.

    Attributes:
        item_rows: (n,) oldest first.
        unknown_items: ids of events with items that the catalog does not have, or not yet.
        found: whether log or events have the user at all.
        about: what the users table told of them, in words.
        logged: how many of the items the log has, whatever the events have of them.
    """

    item_rows: Rows
    unknown_items: tuple[str, ...] = ()
    found: bool = True
    about: str = ""
    logged: int = 0


def known_of(user_id: str, dataset: Dataset, events: Events) -> Known:
    """Log and events put together in order of time; an event that the log has, too, counts once.

    The log has what `prepare` took in, times or not, and what the user's own file had of the same moment.
    Of a user who asked to be forgotten only what came later is there.
    """
    rows, times = _logged(user_id, dataset)
    forgotten_at = events.forgotten_at(user_id)
    if forgotten_at is not None:
        later = times > forgotten_at
        rows, times = rows[later], times[later]
    # A data set without them was prepared after they were forgotten, and tells nothing of them.
    known = user_id in dataset.users and (forgotten_at is None or len(rows) > 0)
    about = dataset.interactions.about_of(dataset.users.row(user_id)) if known else ""
    recent = events.of_user(user_id)
    if not recent:
        return Known(rows, found=bool(len(rows)), about=about, logged=len(rows))
    vocabulary = dataset.catalog.vocabulary
    unknown = tuple(dict.fromkeys(one.item_id for one in recent if one.item_id not in vocabulary))
    there = [(vocabulary.row(one.item_id), one) for one in recent if one.item_id in vocabulary]
    logged, at_moments = set(rows.tolist()), set(zip(rows.tolist(), times.tolist(), strict=True))
    # What `prepare` took in is in the log, unless the catalog lacked the item then, or this log is to be forgotten.
    pairs = [
        (row, one.time)
        for row, one in there
        if (row, one.time) not in at_moments and not (one.number <= dataset.last_event and row in logged)
    ]
    new = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    # The log keeps its own order, which need not be that of time; without time (the smallest number) it comes first.
    moments = np.concatenate([np.maximum.accumulate(times), new[:, 1]])
    together = np.concatenate([rows, new[:, 0]])[np.argsort(moments, kind="stable")]
    return Known(together, unknown, about=about, logged=len(rows))


def disliked_by(user_id: str, dataset: Dataset, events: Events | None) -> Rows:
    """Rows of what a user rated too low to count, which is no history; who asked to be forgotten as in `known_of`."""
    if dataset.disliked is None:
        return np.zeros(0, dtype=np.int64)
    rows, times = _logged(user_id, dataset.disliked)
    forgotten_at = events.forgotten_at(user_id) if events is not None and len(rows) else None
    return rows if forgotten_at is None else rows[times > forgotten_at]


def _logged(user_id: str, dataset: Dataset | Disliked) -> tuple[Rows, Rows]:
    """(n,) item rows and (n,) Unix seconds, NO_TIME where unknown, in the order of the log."""
    log = dataset.interactions
    if user_id not in dataset.users:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    row = dataset.users.row(user_id)
    rows = log[row]
    if log.timestamps is None:
        return rows, np.full(len(rows), Histories.NO_TIME)
    return rows, log.timestamps[log.offsets[row] : log.offsets[row + 1]]
