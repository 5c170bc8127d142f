"""Looking things up, the shape that rerank clients speak, and what the service says of itself."""

import json

import numpy as np
import pytest

from tests.serve.conftest import Client


def test_items_are_found_by_words_of_their_titles_in_any_order(client: Client):
    recommender = client.service.serving.recommender
    first, second = recommender.titles[7].split()
    found = client.get("/v1/items", params={"search": f"{second.upper()} {first}"}).json()["items"]
    assert {"item_id": "i07", "title": recommender.titles[7]} in found
    assert all(first in item["title"] and second in item["title"] for item in found)


def test_an_item_is_found_by_its_id_before_all_others(client: Client):
    assert client.get("/v1/items", params={"search": "i07"}).json()["items"][0]["item_id"] == "i07"


def test_a_search_without_words_gives_what_was_taken_most(client: Client):
    recommender = client.service.serving.recommender
    taken = np.bincount(recommender.interactions.item_rows, minlength=60)
    found = [item["item_id"] for item in client.get("/v1/items", params={"limit": 60}).json()["items"]]
    counts = [taken[recommender.catalog.vocabulary.row(item_id)] for item_id in found]
    assert counts == sorted(taken.tolist(), reverse=True)


@pytest.mark.parametrize("text", [".*", "(", "\\", "%", "'", "\u0000", "日本"])
def test_a_search_is_no_pattern(client: Client, text: str):
    assert client.get("/v1/items", params={"search": text}).json()["items"] == []


def test_users_are_found_by_their_ids(client: Client):
    found = client.get("/v1/users", params={"search": "u01", "limit": 3}).json()["users"]
    assert len(found) == 3
    assert all(user.startswith("u01") for user in found)
    assert client.get("/v1/users", params={"search": "x"}).json()["users"] == []


def test_similar_items_are_those_with_like_texts(client: Client):
    retriever = client.service.serving.recommender.retriever
    cosines = retriever.text @ retriever.text[7]
    cosines[7] = -np.inf
    found = client.get("/v1/items/i07/similar", params={"limit": 3}).json()["items"]
    assert [item["item_id"] for item in found] == [f"i{row:02d}" for row in np.argsort(-cosines)[:3]]
    assert found[0]["score"] == pytest.approx(float(cosines.max()), abs=1e-5)


def test_a_catalog_with_fewer_items_than_are_usually_similar_gives_all_others(client: Client, monkeypatch):
    monkeypatch.setattr("recommend.service.SIMILAR", 100)
    found = client.get("/v1/items/i07/similar").json()["items"]
    assert len({item["item_id"] for item in found} - {"i07"}) == 59
    assert client.get("/v1/items/i07/similar", params={"limit": 100}).status_code == 422


def test_an_unknown_item_has_nothing_similar(client: Client):
    found = client.get("/v1/items/x%2Fy/similar")
    assert found.status_code == 404
    assert "'x/y'" in found.json()["error"]["message"]
    assert client.get("/v1/items/i07/similar", params={"limit": 0}).status_code == 422


def test_documents_are_put_in_order(client: Client):
    documents = ["sol", "lum mal", {"text": "mir mos"}, "sol"]
    body = {"query": "lum\nmal", "documents": documents, "top_n": 3, "return_documents": True, "model": "any"}
    answer = client.post("/v1/rerank", body).json()
    texts = ["sol", "lum mal", "mir mos", "sol"]
    expected = client.service.rerank(["lum", "mal"], texts).scores[0]
    order = np.argsort(-expected, kind="stable")[:3].tolist()
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(1 / (1 + np.exp(-expected[one["index"]])), abs=1e-5)
        assert one["document"]["text"] == texts[one["index"]]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert client.post("/v2/rerank", body).status_code == 200


def test_a_reranker_that_fails_gives_no_order_at_all(client: Client):
    child = client.service.serving.child
    child.fault = RuntimeError("no luck")
    try:
        found = client.post("/v1/rerank", {"query": "x", "documents": ["a", "b"]})
    finally:
        child.fault = None
    assert found.status_code == 503
    assert found.headers["retry-after"]
    assert "no luck" in found.json()["error"]["message"]


def test_where_the_days_tokens_are_spent_documents_are_refused_and_answers_come_in_retrieval_order(client: Client):
    allowance = client.service.serving.recommender.second.allowance
    allowance.per_day = 0
    try:
        found = client.post("/v1/rerank", {"query": "x", "documents": ["a", "b"]})
        answer = client.post("/v1/recommend", {"user_id": "u010"}).json()
    finally:
        allowance.per_day = None
    assert found.status_code == 429
    assert "max_tokens_per_day" in found.json()["error"]["message"]
    assert (answer["usage"]["prompt_tokens"], answer["left_out"]) == (0, "retrieval order (max_tokens_per_day)")
    assert client.post("/v1/rerank", {"query": "x", "documents": ["a", "b"]}).status_code == 200


def test_documents_are_read_for_a_user(client: Client):
    texts, known = client.service.texts_of("u010")
    assert known
    assert len(texts) == len(client.service.serving.recommender.history_of("u010"))
    answer = client.post("/v1/rerank", {"user_id": "u010", "documents": ["sol", "lum"]}).json()
    expected = client.service.rerank(texts[-30:], ["sol", "lum"]).scores[0]
    assert answer["results"][0]["index"] == int(np.argmax(expected))
    assert (answer["known_user"], answer["truncated"], answer["left_out"]) == (True, 0, 0)


def test_what_of_documents_and_users_was_not_read_is_told(client: Client):
    documents = ["sol", "lum mal mir mos sol lum mal mir mos", "mir"]  # the shop reads eight tokens, their end included
    answer = client.post("/v1/rerank", {"user_id": "nobody at all", "documents": documents}).json()
    assert (answer["known_user"], answer["truncated"], answer["left_out"]) == (False, 1, 0)
    assert len(answer["results"]) == 3
    assert client.post("/v1/rerank", {"query": "sol", "documents": ["sol", "lum"]}).json()["known_user"] is True


def test_documents_are_counted_like_recommendations(client: Client):
    metrics = client.server.metrics
    fed, stage = metrics.tokens.labels("fed")._value, metrics.stage_seconds.labels("rerank")
    before, timed = fed.get(), sum(bucket.get() for bucket in stage._buckets)
    usage = client.post("/v1/rerank", {"query": "lum", "documents": ["sol", "lum"]}).json()["usage"]
    assert fed.get() == before + usage["prompt_tokens"] - usage["cached_tokens"]
    assert sum(bucket.get() for bucket in stage._buckets) == timed + 1


def test_documents_that_load_leaves_no_room_for_are_refused_as_a_whole(client: Client):
    load, refused = client.service.serving.load, client.server.metrics.refused._value
    before, pace = refused.get(), load.ms_per_candidate
    body = {"query": "lum", "documents": ["sol"] * 40}
    try:
        load.ms_per_candidate = load.target_ms / 50
        with load.reading(20):
            found = client.post("/v1/rerank", body)  # 20 of 50 places are taken, and half of the rest is granted
        assert (found.status_code, found.json()["error"]["code"]) == (429, "busy")
        assert "40 documents" in found.json()["error"]["message"]
        assert refused.get() == before + 1
        assert len(client.post("/v1/rerank", body).json()["results"]) == 40  # who is alone gets all
    finally:
        load.ms_per_candidate = pace


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "x", "documents": []}, "documents"),
        ({"documents": ["a"]}, "exactly one of query and user_id"),
        ({"query": "x", "documents": ["a"] * 501}, "documents is 501, at most 500"),
        ({"query": "x", "documents": [5]}, "documents"),
        ({"query": "x", "documents": ["a"], "top_n": 0}, "top_n"),
    ],
)
def test_a_bad_rerank_request_is_refused(client: Client, body, told: str):
    found = client.post("/v1/rerank", body)
    assert found.status_code == 422
    assert told in found.json()["error"]["message"]


def test_the_service_says_what_it_is(client: Client):
    about = client.get("/v1/about").json()
    assert (about["items"], about["users"]) == (60, 120)
    assert about["reranker"] == {"present": True, "helps": True, "ready": True}
    assert about["defaults"]["depth"] == 8
    assert about["limits"]["limit"] == 40
    assert about["release"] == client.service.serving.name


def test_without_a_report_the_command_is_named(client: Client, root):
    found = client.get("/v1/report")
    assert found.status_code == 404
    assert "evaluate --run" in found.json()["error"]["message"]
    for part, name in (("test", "older"), ("validation", "newer")):
        (folder := root / "reports" / part).mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"title": name}))
    assert client.get("/v1/report").json() == {"title": "newer"}


def test_metrics_count_what_was_answered(client: Client):
    def value(line: str) -> float:
        text = client.get("/metrics").text
        return sum(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line))

    good = 'tandem_requests_total{route="/v1/recommend",status="200"}'
    before, depth = value(good), value("tandem_depth_sum")
    client.post("/v1/recommend", {"user_id": "u010"})
    client.post("/v1/recommend", {"user_id": "u010", "limit": 0})
    assert value(good) == before + 1
    assert value("tandem_depth_sum") == depth + 8
    assert value('tandem_stage_seconds_count{stage="retrieval"}') >= before + 1
    assert value(f'tandem_release{{index="{client.service.serving.release.index}",name=') == 1
    assert value("tandem_reranker_ready") == 1


def test_health_tells_what_is_wrong(client: Client):
    assert client.get("/v1/health").json() == {"status": "ok", "degraded": False, "reasons": []}
    child = client.service.serving.child
    child.is_ready = False
    try:
        assert client.get("/v1/health").status_code == 200
        assert "being started" in client.get("/v1/health").json()["reasons"][0]
        assert client.get("/v1/ready").status_code == 503
    finally:
        child.is_ready = True
    assert client.get("/v1/ready").status_code == 200
