"""A reranker that raises, hangs, gives NaN or runs out of memory costs its touch, never the answer."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.faults import Fault, faulty
from pipeline.workspace import open_workspace
from recommend.service import Service
from recommend.supervised import SupervisedReranker
from serve.context import Server
from serve.limits import ServeConfig
from serve.metrics import FAILED
from store.artifacts import Run
from tests.pipeline.shop import weigh_reranker
from tests.serve.conftest import Client

ASK = {"user_id": "u010", "limit": 10}


@pytest.fixture(scope="module")
def broken(shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    """A service with a reranker in a child, and the file that names its fault."""
    folder = tmp_path_factory.mktemp("broken")
    root, file = shop.copy(folder), folder / "fault"
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    service = Service(
        Run(root),
        configure=lambda: open_workspace(root).config.recommending,
        overload=ServeConfig().overload,
        time_limit_s=10.0,
        opener=lambda run, key, _: SupervisedReranker(partial(faulty, run.root, key, file), timeout_s=10.0),
    )
    service.serving.child.wait_until_ready()
    yield Client(Server(service, ServeConfig(time_limit_ms=30_000), None)), file
    service.close()


@pytest.mark.parametrize("fault", list(Fault))
def test_while_it_fails_answers_come_in_retrieval_order_and_afterwards_whole(broken, fault: Fault) -> None:
    client, file = broken
    child = client.service.serving.child
    counted = client.server.metrics.degraded.labels(FAILED)._value
    whole = client.post("/v1/recommend", ASK).json()
    assert whole["degraded"] is False
    before = counted.get()
    child.timeout_s = 1.0 if fault is Fault.HANG else 20.0
    file.write_text(fault)
    answers = [client.post("/v1/recommend", ASK) for _ in range(3)]
    file.unlink()
    assert [answer.status_code for answer in answers] == [200] * 3
    for answer in answers:
        assert answer.json()["degraded"] is True
        assert answer.json()["reason"].startswith("the reranker failed")
        assert [item["retrieval_rank"] for item in answer.json()["items"]] == list(range(1, 11))
    assert counted.get() == before + 3
    child.timeout_s = 20.0
    child.wait_until_ready()
    again = client.post("/v1/recommend", ASK).json()
    assert (again["degraded"], again["items"]) == (False, whole["items"])


def test_health_tells_of_a_child_that_is_away(broken) -> None:
    client, _ = broken
    child = client.service.serving.child
    child._child.kill()
    client.post("/v1/recommend", ASK)
    health = client.get("/v1/health")
    assert health.status_code == 200
    if health.json()["degraded"]:  # a quick machine may have a new child by now
        assert "being started" in health.json()["reasons"][0]
    child.wait_until_ready()
    assert client.get("/v1/health").json()["degraded"] is False


def test_a_user_is_forgotten_by_the_child_too(broken) -> None:
    client, _ = broken
    assert client.ask("DELETE", "/v1/users/u050").status_code == 200
    assert client.post("/v1/recommend", ASK).json()["degraded"] is False
