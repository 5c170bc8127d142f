"""The next training knows the events, and does not know whom to forget."""

from pathlib import Path

import polars as pl
import pytest

from recommend.events import Event, Events
from recommend.live_log import LiveLog

ITEMS = pl.Series(["i1", "i2", "i3"])


def log(**more: list[int]) -> pl.DataFrame:
    users, items = ["u1", "u2", "u1", "u3"], ["i1", "i2", "i2", "i3"]
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": [10, 20, 30, 40], **more})


@pytest.fixture
def events(tmp_path: Path) -> Events:
    return Events(tmp_path)


def live(tmp_path: Path) -> LiveLog:
    found = LiveLog.of(tmp_path)
    assert found is not None
    return found


def test_a_run_that_never_served_has_none(tmp_path: Path):
    assert LiveLog.of(tmp_path) is None


def test_events_come_after_the_log_and_what_it_has_already_does_not_come_twice(events: Events, tmp_path: Path):
    events.add([Event("a", "u1", "i3", 50), Event("b", "u1", "i1", 10), Event("c", "new", "i2", 60)])
    found, went, came = live(tmp_path).amended(log(), ITEMS)
    assert found.rows()[4:] == [("u1", "i3", 50), ("new", "i2", 60)]
    assert (went, came) == ({"forgotten_users": 0}, 2)


def test_events_with_items_that_the_catalog_lacks_stay_out(events: Events, tmp_path: Path):
    events.add([Event("a", "u1", "gone", 50)])
    assert len(live(tmp_path).amended(log(), ITEMS)[0]) == 4


def test_positions_go_on(events: Events, tmp_path: Path):
    events.add([Event("a", "u1", "i3", 50), Event("b", "u2", "i3", 51)])
    found, _, _ = live(tmp_path).amended(log(position=[1, 1, 2, 7]), ITEMS)
    assert found["position"].to_list() == [1, 1, 2, 7, 8, 9]


def test_whom_to_forget_is_left_out_until_then_and_known_afterwards(events: Events, tmp_path: Path):
    events.add([Event("a", "u1", "i3", 50)])
    before = live(tmp_path).made_from
    events.forget("u1")
    at = events.forgotten_at("u1")
    assert at is not None
    events.add([Event("b", "u1", "i2", at + 10)])
    found, went, came = live(tmp_path).amended(log(), ITEMS)
    assert found.rows() == [("u2", "i2", 20), ("u3", "i3", 40), ("u1", "i2", at + 10)]
    assert (went, came) == ({"forgotten_users": 2}, 1)
    assert live(tmp_path).made_from != before


def test_without_times_everything_of_theirs_goes(events: Events, tmp_path: Path):
    events.forget("u1")
    found, _, _ = live(tmp_path).amended(log().drop("timestamp"), ITEMS)
    assert found["user_id"].to_list() == ["u2", "u3"]


def test_events_that_come_meanwhile_are_left_for_the_next_data_set(events: Events, tmp_path: Path):
    events.add([Event("a", "u1", "i3", 50)])
    found = live(tmp_path)
    events.add([Event("b", "u2", "i3", 60)])
    assert found.amended(log(), ITEMS)[2] == 1
    assert found.made_from["live"]["events"] == 1


def test_a_service_that_has_learnt_nothing_changes_no_key(events: Events, tmp_path: Path):
    assert live(tmp_path).made_from == {}
