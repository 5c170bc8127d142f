"""Who comes in, what they leave in the log, and what every answer carries."""

import logging

import pytest

from serve.logs import ACCESS, FIELDS
from tests.serve.conftest import Client

ASK = {"user_id": "u010", "limit": 1, "rerank": "never"}
EVENT = {"event_id": "door", "user_id": "u", "item_id": "i01"}


def test_without_a_key_nothing_is_told(locked: Client):
    for method, path in (("POST", "/v1/recommend"), ("GET", "/v1/users"), ("GET", "/metrics"), ("GET", "/v1/nothing")):
        found = locked.ask(method, path)
        assert found.status_code == 401
        assert found.headers["www-authenticate"] == "Bearer"


def test_wrong_revoked_and_expired_keys_look_alike(locked: Client, reader: Client):
    name = reader.key.split("_")[1]
    reader.server.keys.revoke(name)
    answers = [
        Client(locked.server, key).get("/v1/about").json()["error"] for key in (reader.key, "tandem_0000_x", "nonsense")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_a_read_key_reads_and_does_not_write(reader: Client):
    assert reader.post("/v1/recommend", ASK).status_code == 200
    assert reader.get("/metrics").status_code == 200
    assert reader.post("/v1/events", EVENT).status_code == 403
    assert reader.ask("DELETE", "/v1/users/u001").status_code == 403


def test_a_write_key_writes(writer: Client):
    assert writer.post("/v1/events", EVENT).status_code == 200


def test_a_key_may_come_in_its_own_header(reader: Client, locked: Client):
    assert locked.get("/v1/about", headers={"x-api-key": reader.key}).status_code == 200


def test_health_readiness_and_the_document_need_no_key(locked: Client):
    for path in ("/v1/health", "/v1/ready", "/openapi.json", "/docs"):
        assert locked.get(path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", ""])
def test_without_keys_only_this_machine_comes_in(client: Client, host: str):
    found = client.get("/v1/about", headers={"host": host})
    assert found.status_code == 403
    assert client.get("/v1/about", headers={"host": "localhost:8000"}).status_code == 200


def test_a_request_keeps_its_id_if_it_is_harmless(client: Client):
    found = client.get("/v1/about", headers={"x-request-id": "abc-123"})
    assert found.headers["x-request-id"] == found.json()["request_id"] == "abc-123"
    for harmful in ("a b", "x" * 65, '"}', ""):
        assert client.get("/v1/about", headers={"x-request-id": harmful}).headers["x-request-id"] != harmful


def test_a_body_over_the_limit_is_refused(client: Client):
    large = {"query": "x" * 9000}
    found = client.post("/v1/recommend", large)
    assert found.status_code == 413
    assert "8 kB" in found.json()["error"]["message"]


def test_a_body_over_the_limit_that_does_not_say_so_is_refused(client: Client):
    async def parts():
        for _ in range(20):
            yield b" " * 1000

    found = client.ask("POST", "/v1/recommend", content=parts(), headers={"content-type": "application/json"})
    assert found.status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_kinds_of_bodies_are_refused(client: Client, kind: str):
    found = client.ask("POST", "/v1/recommend", content=b'{"user_id": "u1"}', headers={"content-type": kind})
    assert found.status_code == 415


def test_unknown_paths_and_methods_answer_in_json(client: Client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert client.get("/v1/recommend").status_code == 405


def test_the_log_tells_no_titles_no_histories_and_no_user_ids(client: Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger=ACCESS):
        client.post("/v1/recommend", {"user_id": "u010", "limit": 3})
        client.post("/v1/recommend", {"history": ["i05", "secret-item"]})
        client.ask("DELETE", "/v1/users/u099")
    lines = [getattr(record, FIELDS) for record in caplog.records if record.name == ACCESS]
    assert [line["route"] for line in lines] == ["/v1/recommend", "/v1/recommend", "/v1/users/{user_id:path}"]
    assert lines[0]["user"] == client.service.events.hashed("u010")
    told = str(lines)
    for secret in ("u010", "u099", "i05", "secret-item", *client.service.serving.recommender.titles):
        assert secret not in told
    assert (lines[0]["status"], lines[0]["depth"]) == (200, 8)
