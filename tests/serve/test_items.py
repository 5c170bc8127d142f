"""Items that are put are recommended when answered, and those that are removed are not, by whoever changed them."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.change_index import remove_items
from pipeline.run_log import RunLog
from recommend.microbatch import Crowded
from recommend.service import Service
from serve.context import Server
from serve.limits import ServeConfig
from store.artifacts import Run
from store.errors import RunBusy
from tests.pipeline.shop import catalog_rows, weigh_reranker
from tests.serve.conftest import Client, service_on

TWIN = {"title": catalog_rows()[30][1], "genres": "genre2"}
"""As i30, which follows i29."""


@pytest.fixture
def client(shop, tmp_path: Path) -> Iterator[Client]:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.1)
    service = service_on(root)
    yield Client(Server(service, ServeConfig(), None))
    service.close()


def put(client: Client, item_id: str, values):
    return client.ask("PUT", f"/v1/items/{item_id}", json=values)


def after(client: Client, item_id: str, **more) -> list[str]:
    answer = client.post("/v1/recommend", {"history": [item_id], "limit": 10, "rerank": "never", **more}).json()
    return [item["item_id"] for item in answer["items"]]


@contextmanager
def held_by_another(run: Run) -> Iterator[None]:
    """Another process is writing to the run."""
    context = multiprocessing.get_context("fork")
    held, may_go = context.Event(), context.Event()

    def hold() -> None:
        with Run(run.root).lock():
            held.set()
            may_go.wait(60)

    other = context.Process(target=hold)
    other.start()
    try:
        assert held.wait(30)
        yield
    finally:
        may_go.set()
        other.join()


def test_an_item_is_live_when_its_answer_comes(client: Client):
    before = client.service.serving.name
    assert "twin" not in after(client, "i29")
    found = put(client, "twin", {**TWIN, "colour": "red"})
    assert found.status_code == 200, found.text
    assert (found.json()["state"], found.json()["ignored"]) == ("added", ["colour"])
    assert "twin" in after(client, "i29")
    assert put(client, "twin", TWIN).json()["state"] == "unchanged"
    assert client.get("/v1/items", params={"search": "twin"}).json()["items"][0]["title"] == TWIN["title"]
    assert client.get("/v1/about").json()["items"] == 61
    assert "i30" in [item["item_id"] for item in client.get("/v1/items/twin/similar").json()["items"]]
    assert after(client, "i29", where="item_id = 'twin'") == ["twin"]
    assert client.service.serving.name == before
    gone = client.ask("DELETE", "/v1/items/twin")
    assert gone.json()["state"] == "removed"
    assert "twin" not in after(client, "i29")
    assert client.get("/v1/items", params={"search": "twin"}).json()["items"] == []
    assert client.ask("DELETE", "/v1/items/twin").status_code == 404


def test_an_item_that_changes_is_what_it_is_now(client: Client):
    other = catalog_rows()[10][1]
    assert put(client, "i30", {"title": other}).json()["state"] == "updated"
    assert {"item_id": "i30", "title": other} in client.get("/v1/items", params={"search": "i30"}).json()["items"]
    assert after(client, "i29", where="genres = 'genre2' AND item_id = 'i30'") == ["i30"]  # what was left out stays


def test_what_was_acknowledged_is_there_after_a_restart(client: Client):
    put(client, "twin", TWIN)
    again = service_on(client.service.run.root)
    try:
        assert "twin" in again.serving.recommender.catalog.vocabulary
    finally:
        again.close()


def test_what_another_process_changes_is_seen_within_a_second(client: Client):
    service: Service = client.service
    assert "i30" in after(client, "i29")
    remove_items(Run(service.run.root), ["i30"], log=RunLog(None, "test", quiet=True))
    until = time.monotonic() + 30
    while "i30" in after(client, "i29") and time.monotonic() < until:
        time.sleep(0.05)
    assert "i30" not in after(client, "i29")
    assert service.swaps == 0


def test_many_at_once_are_all_there(client: Client):
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda n: client.service.put(f"new{n}", {"title": f"sol {n}"}).state, range(12)))
    assert states == ["added"] * 12
    vocabulary = client.service.serving.recommender.catalog.vocabulary
    assert all(f"new{n}" in vocabulary for n in range(12))


def test_an_event_with_an_item_that_comes_later_counts_then(client: Client):
    event = {"event_id": "early", "user_id": "early bird", "item_id": "twin"}
    assert client.post("/v1/events", event).json()["unknown_items"] == ["twin"]
    ask = {"user_id": "early bird", "limit": 3, "rerank": "never"}
    assert client.post("/v1/recommend", ask).json()["basis"] == "recent popular items"
    put(client, "twin", TWIN)
    assert client.post("/v1/recommend", ask).json()["basis"] == "history"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"title": {"a": 1}}, "title"),
        ({}, "no text comes out"),
        ([], "should be an object"),
        ({"title": None}, "no text"),
    ],
)
def test_a_bad_item_is_refused_and_nothing_changes(client: Client, values, told: str):
    found = put(client, "fresh", values)
    assert found.status_code == 422
    assert told in found.text
    assert client.get("/v1/about").json()["items"] == 60


def test_a_run_that_is_being_written_says_so(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.item_writer.LOCK_S", 0.2)
    with held_by_another(client.service.run):
        found = put(client, "twin", TWIN)
        assert found.status_code == 503
        assert found.headers["retry-after"]
        assert found.json()["error"]["code"] == "run_busy"
    assert put(client, "twin", TWIN).status_code == 200


def test_many_who_meet_a_busy_run_do_not_wait_one_after_another(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.item_writer.LOCK_S", 0.5)
    with held_by_another(client.service.run), ThreadPoolExecutor(12) as pool:
        started = time.monotonic()
        found = [pool.submit(client.service.put, f"new{n}", TWIN) for n in range(12)]
        errors = [one.exception() for one in found]
        took = time.monotonic() - started
    assert {type(error) for error in errors} <= {RunBusy, Crowded}
    assert took < 6 * 0.5  # for all of them together; one by one it would be twelve waits
    assert put(client, "twin", TWIN).status_code == 200


def test_while_a_release_is_opened_changes_are_sent_away_and_not_kept(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.item_writer.LOCK_S", 0.2)
    opening, may_go = threading.Event(), threading.Event()

    def open_slowly() -> None:
        with client.service._changing:
            opening.set()
            may_go.wait(60)

    other = threading.Thread(target=open_slowly)
    other.start()
    try:
        assert opening.wait(30)
        with pytest.raises(RunBusy, match="another release is being opened"):
            client.service.put("twin", TWIN)
    finally:
        may_go.set()
        other.join()


def test_who_waits_too_long_for_other_changes_is_told_to_come_back(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recommend.item_writer.LOCK_S", 0.1)
    refused = client.server.metrics.refused._value
    before = refused.get()
    with client.service._items._calls._turn:
        found = put(client, "twin", TWIN)
    assert (found.status_code, found.json()["error"]["code"]) == (429, "busy")
    assert found.headers["retry-after"]
    assert refused.get() == before + 1
