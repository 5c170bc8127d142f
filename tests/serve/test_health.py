"""What the service says of itself, whatever befalls it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recommend.events import FILE, LIVE
from recommend.wishes import WishReader
from serve.context import Server
from serve.limits import ServeConfig
from tests.pipeline.shop import weigh_reranker
from tests.serve.conftest import Client, service_on


@pytest.fixture
def client(shop, tmp_path: Path) -> Iterator[Client]:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    service = service_on(root)
    yield Client(Server(service, ServeConfig(), None))
    service.close()


def soon(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    return what()


def failed(client: Client, why: str) -> bool:
    health, ready = client.get("/v1/health"), client.get("/v1/ready")
    assert (health.status_code, ready.status_code) == (503, 503)
    assert (health.json()["status"], health.json()["degraded"]) == ("failed", True)
    return why in health.json()["reasons"][0]


def test_a_fault_in_one_duty_is_told_and_keeps_the_keeper_from_no_other(client: Client):
    faults = [ValueError("no luck")]

    def watcher() -> None:
        if faults:
            raise faults[0]

    client.service.watchers.append(watcher)
    assert soon(lambda: client.get("/v1/health").json()["degraded"])
    health = client.get("/v1/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert health.json()["reasons"] == ["showing what there is to see fails: ValueError: no luck"]
    client.service.run.publish(reranker=None)
    assert soon(lambda: client.service.swaps == 1)
    faults.clear()
    assert soon(lambda: client.get("/v1/health").json() == {"status": "ok", "degraded": False, "reasons": []})


def test_without_its_keeper_it_has_failed(client: Client):
    client.service._keeper.close()
    assert failed(client, "it has ended")


def test_without_its_events_it_has_failed(client: Client):
    file = client.service.run.root / LIVE / FILE
    away = file.rename(file.with_name("away"))
    file.mkdir()
    assert failed(client, "events cannot be read")
    file.rmdir()
    away.rename(file)
    assert client.get("/v1/health").status_code == 200


def test_a_server_that_is_told_to_end_says_so(client: Client):
    client.server.is_leaving = lambda: True
    assert failed(client, "told to end")
    assert client.post("/v1/recommend", {"user_id": "u010"}).status_code == 200  # who is here is answered


def test_the_keeper_tends_the_reranker_and_the_gauges_without_being_asked(client: Client):
    assert soon(lambda: client.service.serving.child.revived > 0)
    metrics = client.server.metrics
    assert soon(lambda: metrics.reranker_starts._value.get() == 1)
    client.service.serving.child.is_ready = False
    assert soon(lambda: metrics.reranker_ready._value.get() == 0)


def test_the_encoder_is_loaded_before_anybody_asks(client: Client):
    assert client.service.serving.wishes._loaded is not None


def test_an_encoder_that_cannot_be_loaded_is_told(client: Client):
    serving = client.service.serving
    lost = WishReader(client.service.run, replace(serving.release, retriever="feedfeedfeedfeed"))
    lost.warm()
    client.service._now = replace(serving, wishes=lost)
    health = client.get("/v1/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert "wishes and new items cannot be read" in health.json()["reasons"][0]
    assert "train-retriever" in health.json()["reasons"][0]
