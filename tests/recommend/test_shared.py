"""One reranker for several processes: what a hub passes on."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import pytest

from recommend.microbatch import Crowded
from recommend.shared import Address, RerankerHub, SharedReranker
from recommend.supervised import RerankerFailure
from rerank.base import RerankRequest, RerankResult


class Child:
    """Stands for a supervised reranker that has too much to do."""

    name, starts, trouble, is_ready = "child", 1, "", True

    def __init__(self) -> None:
        self.forgotten = self.revived = self.closed = 0

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        raise Crowded("others were served for 2 s")

    def revive(self) -> None:
        self.revived += 1

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def children() -> dict[str, Child]:
    return {}


@pytest.fixture
def hub(children: dict[str, Child]) -> Iterator[RerankerHub]:
    made = RerankerHub(lambda key: children.setdefault(key, Child()), batch=4, window_ms=0, timeout_s=5)
    yield made
    made.close()


def test_that_it_is_too_busy_is_no_failure(hub: RerankerHub):
    with pytest.raises(Crowded, match="others were served for 2 s"):
        SharedReranker(hub.address, "a", timeout_s=5).score([RerankRequest((), ("x",))])


def test_a_child_that_has_just_become_ready_is_asked(
    hub: RerankerHub, children: dict[str, Child], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("recommend.shared.STATE_S", 60.0)
    children["a"] = Child()
    children["a"].is_ready = False
    found = SharedReranker(hub.address, "a", timeout_s=5)
    with pytest.raises(RerankerFailure, match="being started"):
        found.score([RerankRequest((), ("x",))])
    children["a"].is_ready = True  # which another worker may have told already
    with pytest.raises(Crowded):
        found.score([RerankRequest((), ("x",))])


def test_every_child_forgets_that_of_the_release_before_too(hub: RerankerHub, children: dict[str, Child]):
    before, now = (SharedReranker(hub.address, key, timeout_s=5) for key in ("before", "now"))
    now.forget()
    assert {key: child.forgotten for key, child in children.items()} == {"before": 1, "now": 1}
    assert before.is_ready


def test_children_are_tended_without_being_asked(hub: RerankerHub, children: dict[str, Child]):
    SharedReranker(hub.address, "a", timeout_s=5)
    until = time.monotonic() + 30
    while not children["a"].revived and time.monotonic() < until:
        time.sleep(0.02)
    assert children["a"].revived


def test_a_hub_that_says_nothing_is_away_and_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.shared.STATE_WAIT_S", 0.2)
    listener = Listener(str(tmp_path / "mute"), "AF_UNIX", authkey=b"secret")
    heard = []

    def listen() -> None:
        with suppress(OSError):  # closed
            while True:
                heard.append(listener.accept())

    threading.Thread(target=listen, daemon=True).start()
    started = time.monotonic()
    found = SharedReranker(Address(str(tmp_path / "mute"), b"secret"), "a", timeout_s=5)
    assert not found.is_ready
    assert "says nothing" in found.trouble
    assert time.monotonic() - started < 10
    listener.close()


def test_a_hub_that_stands_still_is_away_and_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.shared.STATE_WAIT_S", 0.2)
    monkeypatch.setattr("recommend.shared.STATE_S", 0.0)
    # As with a process that was stopped: the system takes connections, and nobody greets them.
    listener = Listener(str(tmp_path / "still"), "AF_UNIX", backlog=16, authkey=b"secret")
    threads = threading.active_count()
    started = time.monotonic()
    found = SharedReranker(Address(str(tmp_path / "still"), b"secret"), "a", timeout_s=5)
    for _ in range(4):
        with pytest.raises(RerankerFailure, match="its hub is away"):
            found.score([RerankRequest((), ("x",))])
    assert not found.is_ready
    assert "greeted" in found.trouble
    assert time.monotonic() - started < 10
    assert threading.active_count() <= threads + 1
    listener.close()


def test_a_hub_that_stood_still_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("recommend.shared.STATE_WAIT_S", 0.2)
    monkeypatch.setattr("recommend.shared.STATE_S", 0.0)
    listener = Listener(str(tmp_path / "slow"), "AF_UNIX", backlog=16, authkey=b"secret")
    found = SharedReranker(Address(str(tmp_path / "slow"), b"secret"), "a", timeout_s=5)
    assert not found.is_ready

    def answer() -> None:
        with suppress(OSError, EOFError):  # of those who have left
            while True:
                connection = listener.accept()
                threading.Thread(target=tell, args=(connection,), daemon=True).start()

    def tell(connection: Connection) -> None:
        with suppress(OSError, EOFError):
            while True:
                connection.recv()
                connection.send((True, 1, ""))

    threading.Thread(target=answer, daemon=True).start()
    until = time.monotonic() + 30
    while not found.is_ready and time.monotonic() < until:
        time.sleep(0.02)
    assert found.is_ready
    listener.close()
