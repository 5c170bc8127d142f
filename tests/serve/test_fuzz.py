"""Whatever is sent, the answer is never a 500, and the document describes what there is."""

import asyncio

import httpx2
import pytest

from bench.fuzz import Shot, drawn, mutated
from tests.serve.conftest import Client

NAMED = {"/v1/recommend", "/v1/rerank", "/v1/events", "/v1/users/{user_id}", "/v1/items/{item_id}/similar", "/metrics"}


def sent(client: Client, shots: list[Shot]) -> list[tuple[Shot, httpx2.Response]]:
    async def all_of_them() -> list[tuple[Shot, httpx2.Response]]:
        transport = httpx2.ASGITransport(app=client.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
            found = []
            for shot in shots:
                request = asking.build_request(
                    shot.method, shot.url, params=shot.flat_params, content=shot.content, headers=shot.plain_headers
                )
                found.append((shot, await asking.send(request)))
            return found

    return asyncio.run(all_of_them())


def refused_or_answered(found: list[tuple[Shot, httpx2.Response]]) -> None:
    broken = [(shot, answer.status_code, answer.text) for shot, answer in found if answer.status_code >= 500]
    assert broken == []
    for shot, answer in found:
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], shot


def test_good_bodies_with_bytes_changed(client: Client):
    found = sent(client, list(mutated(400, seed=0)))
    refused_or_answered(found)
    statuses = {answer.status_code for _, answer in found}
    assert {200, 422} <= statuses


@pytest.mark.filterwarnings("ignore")
def test_requests_drawn_from_the_document(client: Client):
    found = sent(client, list(drawn(client.get("/openapi.json").json(), each=6, seed=0)))
    assert len(found) > 100
    refused_or_answered(found)


def test_the_document_names_every_path_with_examples(client: Client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= NAMED
    for path in ("/v1/recommend", "/v1/events", "/v1/rerank"):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        name = (schema.get("anyOf") or [schema])[0]["$ref"].rpartition("/")[2]
        assert document["components"]["schemas"][name]["examples"]
        assert set(operation["responses"]) >= {"200", "400", "401", "403", "408", "422", "429", "503", "507"}


def test_the_page_of_the_document_loads_nothing_from_elsewhere(client: Client):
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "POST /v1/recommend" in page.text
    assert "Star Wars (1977)" in page.text
    assert "http://" not in page.text.replace("http://127.0.0.1", "")
    assert "https://" not in page.text
