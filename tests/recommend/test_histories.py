"""What stands in the log and in the events counts once, whether the log has times or not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.schema import Catalog, Dataset, Histories
from data.vocabulary import Vocabulary
from recommend.events import Event, Events
from recommend.histories import known_of

IDS = [f"i{number}" for number in range(8)]


@pytest.fixture
def events(tmp_path: Path) -> Events:
    return Events(tmp_path)


def dataset(*items: str, times: Sequence[int] | None = None, last_event: int = 0, ids: Sequence[str] = IDS) -> Dataset:
    """Of one user, "u"."""
    rows = np.array([ids.index(item) for item in items], dtype=np.int64)
    moments = None if times is None else np.array(times, dtype=np.int64)
    log = Histories(rows, np.array([0, len(rows)]), moments)
    catalog = Catalog(pl.DataFrame({"item_id": ids, "title": ids, "text": ids}), Vocabulary(list(ids)))
    return Dataset(log, Vocabulary(["u"], noun="user"), catalog, last_event)


def took(events: Events, *taken: tuple[str, int]) -> int:
    """The number of the last event after the user has taken items at moments."""
    begun = len(events)
    events.add([Event(f"e{begun + number}", "u", item, moment) for number, (item, moment) in enumerate(taken)])
    return events.last_number()


def history(found: Dataset, events: Events) -> list[str]:
    return [found.catalog.vocabulary.ids[row] for row in known_of("u", found, events).item_rows]


@pytest.mark.parametrize("times", [None, [10, 20, 30]])
def test_events_that_the_data_set_took_in_count_once(events: Events, times: list[int] | None):
    last = took(events, ("i1", 20), ("i2", 30))
    after = dataset("i0", "i1", "i2", times=times, last_event=last)
    assert history(after, events) == ["i0", "i1", "i2"]
    took(events, ("i1", 40), ("i3", 50))  # taken again since
    assert history(after, events) == ["i0", "i1", "i2", "i1", "i3"]


@pytest.mark.parametrize("times", [None, [10]])
def test_a_data_set_of_before_has_none_of_them(events: Events, times: list[int] | None):
    took(events, ("i1", 20), ("i0", 30))
    assert history(dataset("i0", times=times), events) == ["i0", "i1", "i0"]


def test_a_repetition_that_the_data_set_dropped_is_not_brought_back(events: Events):
    last = took(events, ("i1", 20))
    kept_first = dataset("i0", "i1", times=[5, 10], last_event=last)
    assert history(kept_first, events) == ["i0", "i1"]


def test_what_the_log_file_had_of_the_same_moment_counts_once(events: Events):
    took(events, ("i0", 10), ("i0", 11))
    assert history(dataset("i0", times=[10]), events) == ["i0", "i0"]


def test_an_event_that_was_left_out_counts_once_the_item_is_there(events: Events):
    last = took(events, ("i1", 20), ("late", 30))
    assert history(dataset("i1", last_event=last, ids=[*IDS, "late"]), events) == ["i1", "late"]


@pytest.mark.parametrize("times", [None, [2**33]])
def test_who_came_back_after_being_forgotten_has_what_came_since(events: Events, times: list[int] | None):
    old = took(events, ("i1", 20))
    events.forget("u")
    took(events, ("i2", 2**33))
    assert history(dataset("i0", last_event=old), events) == ["i2"]
    # The next data set has what came since and nothing else; without times nobody can tell that it came since.
    assert history(dataset("i2", times=times, last_event=events.last_number()), events) == ["i2"]
    # One of before, to which somebody went back.
    assert history(dataset("i0", "i1", times=None if times is None else [10, 20]), events) == ["i2"]


def test_of_the_forgotten_a_moment_of_before_that_came_later_counts(events: Events):
    events.forget("u")
    last = took(events, ("i2", 20))
    assert history(dataset("i2", times=[20], last_event=last), events) == ["i2"]
