"""Events are on disk when acknowledged, once each, and gone when their user is to be forgotten."""

import multiprocessing
import sqlite3
import threading
from pathlib import Path

import polars as pl
import pytest

from recommend.events import FILE, LIVE, Event, Events, Stored
from store.errors import CorruptArtifact, Mismatch


def event(name: str, *, user: str = "u1", item: str = "i1", time: int = 100) -> Event:
    return Event(name, user, item, time)


def test_a_users_events_come_back_in_order_of_time(tmp_path: Path):
    events = Events(tmp_path)
    assert events.add([event("a", item="i3", time=30), event("b", item="i1", time=10)]) == Stored(2, 0)
    assert events.add([event("c", item="i2", time=20), event("d", user="u2")]) == Stored(2, 0)
    assert events.of_user("u1") == [("i1", 10, 2), ("i2", 20, 3), ("i3", 30, 1)]
    assert events.of_user("nobody") == []
    assert len(events) == 4
    assert Events(tmp_path).of_user("u2") == [("i1", 100, 4)]


def test_a_second_delivery_changes_nothing(tmp_path: Path):
    events = Events(tmp_path)
    events.add([event("a")])
    assert events.add([event("a", item="i9"), event("b"), event("b")]) == Stored(1, 2)
    assert [one[:2] for one in events.of_user("u1")] == [("i1", 100), ("i1", 100)]


def test_of_many_events_the_latest_are_read_and_every_other_item_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.events.RECALLED", 3)
    events = Events(tmp_path)
    taken = [("i1", 10), ("i2", 20), ("i1", 15), ("i3", 30), ("i2", 40), ("i3", 50), ("i9", 5)]
    events.add([event(f"{number}", item=item, time=time) for number, (item, time) in enumerate(taken)])
    assert events.of_user("u1") == [("i9", 5, 7), ("i1", 15, 3), ("i3", 30, 4), ("i2", 40, 5), ("i3", 50, 6)]


def test_nothing_is_lost_between_threads_and_processes(tmp_path: Path):
    events = Events(tmp_path)
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_add_many, args=(tmp_path, f"p{number}")) for number in range(2)]
    for other in others:
        other.start()
    threads = [threading.Thread(target=_add, args=(events, f"t{number}")) for number in range(4)]
    for thread in threads:
        thread.start()
    for one in (*threads, *others):
        one.join()
    assert len(events) == 6 * 20
    assert {other.exitcode for other in others} == {0}


def _add_many(root: Path, name: str) -> None:
    _add(Events(root), name)


def _add(events: Events, name: str) -> None:
    for number in range(20):
        assert events.add([event(f"{name}-{number}")]) == Stored(1, 0)


def test_whom_to_forget_leaves_no_trace_but_a_mark(tmp_path: Path):
    events = Events(tmp_path)
    events.add([event("a", user="someone special"), event("b", user="someone special"), event("c", user="other")])
    assert events.forgotten_at("someone special") is None
    assert events.forget("someone special") == 2
    assert events.of_user("someone special") == []
    assert events.of_user("other") == [("i1", 100, 3)]
    assert events.forgotten_at("someone special") is not None
    assert events.forget("someone special") == 0
    events.close()
    everything = b"".join(path.read_bytes() for path in (tmp_path / LIVE).iterdir())
    assert b"special" not in everything
    again = Events(tmp_path)
    assert again.forgotten(pl.Series(["other", "someone special"]))["user_id"].to_list() == ["someone special"]


def test_exported_events_are_a_log(tmp_path: Path):
    events = Events(tmp_path)
    events.add([event("a", user="u1", item="i1", time=5), event("b", user="u2", item="i2", time=4)])
    assert events.export(tmp_path / "events.parquet") == 2
    assert pl.read_parquet(tmp_path / "events.parquet").rows() == [("u1", "i1", 5), ("u2", "i2", 4)]
    assert pl.read_parquet(tmp_path / "events.parquet").columns == ["user_id", "item_id", "timestamp"]


def test_every_acknowledged_batch_was_synchronised(tmp_path: Path):
    events = Events(tmp_path)
    assert events._database.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert events._database.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / LIVE).mkdir()
    (tmp_path / LIVE / FILE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(CorruptArtifact, match="move it away"):
        Events(tmp_path)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path):
    Events(tmp_path).close()
    newer = sqlite3.connect(tmp_path / LIVE / FILE)
    newer.execute("PRAGMA user_version = 9")
    newer.commit()
    newer.close()
    with pytest.raises(Mismatch, match=r"version 9.*version 1"):
        Events(tmp_path)
