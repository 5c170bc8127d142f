"""The server as it is started: over a socket, with its child, its keys and its end."""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from recommend.events import Events
from serve.sockets import DEALT_OUT, SharedAddress, bound, listen
from store.errors import BadInput, MissingStep
from tests.pipeline.commands import refused, run
from tests.pipeline.shop import weigh_reranker
from tests.serve.live_server import LiveServer


@pytest.fixture
def served(shop, tmp_path: Path) -> Path:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    return root


def test_it_makes_a_key_serves_both_stages_and_ends_in_order(served: Path) -> None:
    with LiveServer(served) as server:
        key = server.wait_for(r"shown this once: (\S+)")
        assert server.client.post("/v1/recommend", json={"user_id": "u010"}).status_code == 401
        server.client.headers["authorization"] = f"Bearer {key}"
        server.ready()
        answer = server.recommend(user_id="u010", limit=5)
        assert not answer["degraded"]
        assert answer["usage"]["reranked"] == 8
        assert server.client.get("/").status_code in (200, 404)
        # A request under way when the server is told to end is answered.
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.recommend(user_id="u011", explain=True)))
        asking.start()
        time.sleep(0.02)
        assert server.stop() == 0
        asking.join()
        assert len(answers) == 1
        lines = [line for line in server.lines() if line["logger"] == "tandem.access"]
        assert lines[-1]["status"] == 200
        assert all("u01" not in str(line) for line in lines)
    assert (served / "ledger" / "ledger.json").exists()
    with LiveServer(served) as again:
        assert "shown this once" not in again.said
        again.client.headers["authorization"] = f"Bearer {key}"
        assert again.client.get("/v1/about").status_code == 200


def test_no_acknowledged_event_is_lost_when_it_is_killed(served: Path) -> None:
    acknowledged: list[str] = []
    for round_ in range(3):
        with LiveServer(served, "--no-auth") as server:
            ends = threading.Event()

            def write(server: LiveServer = server, round_: int = round_, ends: threading.Event = ends) -> None:
                number = 0
                while not ends.is_set():
                    name = f"{round_}-{threading.get_ident()}-{number}"
                    event = {"event_id": name, "user_id": f"u{number % 7}", "item_id": "i01"}
                    try:
                        if server.client.post("/v1/events", json=event).status_code == 200:
                            acknowledged.append(name)
                    except Exception:
                        return
                    number += 1

            writers = [threading.Thread(target=write) for _ in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(1.0)
            server.kill()
            ends.set()
            for writer in writers:
                writer.join()
    assert len(acknowledged) > 3
    kept = Events(served)._database.reading("SELECT event_id FROM events")
    assert set(acknowledged) <= {name for (name,) in kept}


def test_no_auth_binds_to_this_machine_alone(served: Path) -> None:
    done = run("serve", "--run", served, "--no-auth", "--host", "0.0.0.0", cwd=served.parent)
    refused(done, BadInput, "--no-auth", r"0\.0\.0\.0")


def test_a_port_in_use_is_told_before_anything_is_loaded(served: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("serve", "--run", served, "--port", port, cwd=served.parent)
    refused(done, BadInput, f"port {port} .* is in use", "--port")


def test_of_two_that_start_together_the_second_is_told() -> None:
    first = bound("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = bound("127.0.0.1", port)  # neither listens while it loads
    listen(first)
    with pytest.raises(BadInput, match=f"port {port} of 127.0.0.1 is in use.*--port"):
        listen(second)
    first.close()
    second.close()


@pytest.mark.skipif(not DEALT_OUT, reason="only Linux deals connections out")
def test_connections_are_dealt_out_between_workers_and_none_waits_for_one_that_has_ended() -> None:
    with SharedAddress("127.0.0.1", 0) as address:
        first, second = address.for_worker(), address.for_worker()
        listen(first)
        listen(second)
        assert min(connected(address, [first, second], count=64)) >= 8
        first.close()
        assert connected(address, [second], count=8) == [8]
        second.close()


def connected(address: SharedAddress, sockets: list[socket.socket], *, count: int) -> list[int]:
    """How many of so many clients came to each."""
    clients = [socket.create_connection(address.first.getsockname()) for _ in range(count)]
    found = []
    for one in sockets:
        one.setblocking(False)
        found.append(0)
        with suppress(BlockingIOError):
            while True:
                one.accept()[0].close()
                found[-1] += 1
    for client in clients:
        client.close()
    return found


def test_of_two_that_start_workers_at_one_address_the_second_is_told_whatever_it_is() -> None:
    with SharedAddress("127.0.0.1", 0) as address:
        port = address.first.getsockname()[1]
        if DEALT_OUT:  # nobody listens yet
            with pytest.raises(BadInput, match=f"port {port} of 127.0.0.1 is in use.*--port"):
                SharedAddress("127.0.0.1", port)
            with pytest.raises(BadInput, match=f"port {port} of localhost is in use"):
                SharedAddress("localhost", port)
        alone = bound("127.0.0.1", port)
        worker = address.for_worker()
        listen(worker)
        for begin in (
            lambda: listen(alone),
            lambda: bound("127.0.0.1", port),
            lambda: SharedAddress("127.0.0.1", port),
        ):
            with pytest.raises(BadInput, match=f"port {port} of 127.0.0.1 is in use.*--port"):
                begin()
        worker.close()
        alone.close()
    SharedAddress("127.0.0.1", port).close()  # free again


def test_a_run_that_lacks_a_step_names_its_command(shop, tmp_path: Path) -> None:
    refused(run("serve", "--run", tmp_path / "none", "--port", 0, cwd=tmp_path), MissingStep, "prepare --run")
    root = shop.copy(tmp_path)
    (root / "current.json").unlink()
    refused(run("serve", "--run", root, "--port", 0, cwd=tmp_path), MissingStep, "build-index --run")


def test_a_run_without_a_reranker_serves_retrieval_and_says_so(served: Path) -> None:
    from store.artifacts import Run

    Run(served).publish(reranker=None)
    with LiveServer(served, "--no-auth") as server:
        assert "answers are in retrieval order" in server.said
        answer = server.recommend(user_id="u010")
        assert (answer["degraded"], answer["reason"]) == (False, "this release has no reranker")
        assert server.client.get("/v1/ready").status_code == 200
        refusal = server.client.post("/v1/rerank", json={"query": "x", "documents": ["a"]})
        assert refusal.status_code == 409
        assert "train-reranker --run" in refusal.json()["error"]["message"]


def test_workers_share_an_address_a_reranker_events_and_counts(served: Path) -> None:
    with LiveServer(served, "--no-auth", "--workers", "2") as server:
        server.ready()
        assert "by 2 workers" in server.said
        event = {"event_id": "w", "user_id": "worker", "item_id": "i30"}
        assert server.client.post("/v1/events", json=event).status_code == 200
        answers = []
        for _ in range(12):  # over connections of their own, so that both are asked
            with httpx2.Client(base_url=server.url, timeout=120) as fresh:
                answers.append(fresh.post("/v1/recommend", json={"user_id": "worker", "limit": 3}).json())
        assert all(answer["known_user"] for answer in answers)
        assert [answer["reason"] for answer in answers if answer["degraded"]] == []
        assert all(answer["usage"]["reranked"] for answer in answers)
        assert len({str(answer["items"]) for answer in answers}) == 1
        counts = 'tandem_requests_total{route="/v1/recommend",status="200"} 12.0'
        assert counts in server.client.get("/metrics").text
        assert server.stop() == 0
