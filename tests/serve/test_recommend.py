"""What the API recommends is what a Recommender recommends, and every answer says what it is."""

from dataclasses import replace

import numpy as np
import pytest

from recommend.microbatch import Crowded
from recommend.recommender import Recommender
from recommend.release import load_stages
from serve.metrics import FAILED, SKIPPED
from store.artifacts import Run
from tests.serve.conftest import Client


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def recommended(client: Client, **body):
    found = client.post("/v1/recommend", body)
    assert found.status_code == 200, found.text
    return found.json()


def test_a_user_gets_what_a_recommender_gives(client: Client, root):
    run = Run(root)
    config = client.service.serving.recommender.config
    alone = Recommender(load_stages(run, run.release()), config)
    expected = alone.recommend(alone.history_of("u010"), k=7)
    answer = recommended(client, user_id="u010", limit=7)
    assert ids(answer) == [item.item_id for item in expected.items]
    for given, item in zip(answer["items"], expected.items, strict=True):
        assert given["title"] == item.title
        assert given["score"] == pytest.approx(item.score, abs=1e-5)
        assert (given["retrieval_rank"], given["rerank_rank"]) == (item.retrieval_rank, item.rerank_rank)
    assert answer["basis"] == "history"
    assert (answer["degraded"], answer["reason"], answer["unknown_items"]) == (False, "", [])
    assert answer["usage"]["reranked"] == 8
    assert answer["usage"]["prompt_tokens"] == expected.cost.prompt_tokens
    assert set(answer["stages"]) == {"lookup_ms", "retrieval_ms", "rerank_ms", "explain_ms"}


def test_the_planted_rule_is_served(client: Client):
    answer = recommended(client, history=["i05"], limit=3, rerank="never")
    assert answer["items"][0]["item_id"] == "i06"
    assert answer["reason"] == "the reranker was told not to"
    assert all(item["rerank_rank"] is None for item in answer["items"])


def test_reasons_name_history_items_with_their_shares(client: Client):
    answer = recommended(client, history=["i20", "i05"], limit=1, rerank="never", explain=True)
    first = answer["items"][0]
    assert first["because"][0]["item_id"] == "i05"
    assert first["because"][0]["title"]
    assert 0.5 < first["because"][0]["share"] <= 1
    assert sum(first["sources"].values()) == pytest.approx(1, abs=1e-4)
    assert all(share >= 0 for share in first["sources"].values())
    assert recommended(client, history=["i05"], limit=1)["items"][0]["because"] == []


def test_a_query_is_read_by_the_encoder(client: Client):
    text = client.service.serving.recommender.texts[7]
    answer = recommended(client, query=text, limit=3)
    assert answer["basis"] == "query"
    assert answer["items"][0]["item_id"] == "i07"
    assert answer["items"][0]["score"] == pytest.approx(1, abs=1e-4)  # the cosine of a text with itself


def test_items_to_exclude_do_not_come_back(client: Client):
    first = ids(recommended(client, user_id="u010", limit=5))
    second = recommended(client, user_id="u010", limit=5, exclude_items=[*first[:2], "no such item"])
    assert not set(first[:2]) & set(ids(second))
    assert len(second["items"]) == 5
    assert second["unknown_items"] == ["no such item"]


def test_a_condition_is_kept(client: Client):
    genres = dict(client.service.serving.recommender.catalog.items.select("item_id", "genres").iter_rows())
    answer = recommended(client, user_id="u010", limit=10, where="genres = 'genre2'")
    assert len(answer["items"]) == 10
    assert {genres[item_id] for item_id in ids(answer)} == {"genre2"}
    assert recommended(client, user_id="u010", limit=3, where="  ")["items"]


@pytest.mark.parametrize(
    ("where", "told"),
    [("genres =", "character"), ("colour = 'red'", "colour"), ("genres = 'none'", "none of the 60 items meets it")],
)
def test_a_condition_with_a_fault_is_shown_with_its_place(client: Client, where: str, told: str):
    found = client.post("/v1/recommend", {"user_id": "u010", "where": where})
    assert found.status_code == 422
    assert found.json()["error"]["code"] == "filter"
    assert told in found.json()["error"]["message"]


def test_known_items_come_back_where_wished(client: Client):
    history = ["i05", "i06", "i07"]
    assert not set(ids(recommended(client, history=history, limit=30))) & set(history)
    assert set(ids(recommended(client, history=history, limit=40, exclude_known=False))) & set(history)


def test_an_unknown_user_gets_popular_items_and_the_answer_says_so(client: Client):
    answer = recommended(client, user_id="nobody at all", limit=5)
    assert answer["basis"] == "recent popular items"
    assert answer["known_user"] is False
    assert len(answer["items"]) == 5
    assert recommended(client, user_id="u010")["known_user"] is True


def test_a_history_of_nothing_known_names_its_items(client: Client):
    answer = recommended(client, history=["x", "y", "x"])
    assert answer["unknown_items"] == ["x", "y"]
    assert answer["basis"] == "recent popular items"


def test_a_budget_is_kept_and_told(client: Client):
    answer = recommended(client, user_id="u010", budget={"max_tokens": 30})
    assert 0 < answer["usage"]["prompt_tokens"] <= 30
    assert answer["left_out"] == "fewer candidates (max_tokens)"
    assert answer["degraded"] is False
    assert recommended(client, user_id="u010", budget={"depth": 3})["usage"]["reranked"] == 3


@pytest.mark.parametrize("fault", [RuntimeError("no luck"), KeyError("no luck")], ids=["foreseen", "not foreseen"])
def test_a_reranker_that_fails_leaves_retrieval_order_and_is_counted(client: Client, fault: Exception):
    child = client.service.serving.child
    degraded = client.server.metrics.degraded.labels(FAILED)._value
    before = degraded.get()
    child.fault = fault
    try:
        answer = recommended(client, user_id="u010")
        refused = client.post("/v1/rerank", {"query": "bal", "documents": ["fir", "gos"]})
    finally:
        child.fault = None
    assert answer["degraded"] is True
    assert f"{type(fault).__name__}: " in answer["reason"]
    assert "no luck" in answer["reason"]
    assert refused.status_code == 503
    assert f"{type(fault).__name__}: " in refused.json()["error"]["message"]
    assert [item["retrieval_rank"] for item in answer["items"]] == list(range(1, 11))
    assert degraded.get() == before + 1
    assert recommended(client, user_id="u010")["degraded"] is False


def test_a_turn_that_does_not_come_is_load_and_no_failure(client: Client):
    child, metrics = client.service.serving.child, client.server.metrics
    failed, skipped = metrics.degraded.labels(FAILED)._value, metrics.degraded.labels(SKIPPED)._value
    before = failed.get(), skipped.get()
    child.fault = Crowded("others were served for 2 s")
    try:
        answer = recommended(client, user_id="u010")
    finally:
        child.fault = None
    assert (answer["degraded"], answer["reason"]) == (True, "overload: not reranked, others were served for 2 s")
    assert (failed.get(), skipped.get()) == (before[0], before[1] + 1)


class Level:
    """Scores everything alike."""

    def __init__(self, inside):
        self.inside = inside

    def score(self, requests):
        found = self.inside.score(requests)
        return replace(found, scores=[np.zeros_like(scores) for scores in found.scores])


def test_tied_scores_are_counted(client: Client):
    child, tied = client.service.serving.child, client.server.metrics.tied._value
    before = tied.get()
    recommended(client, user_id="u010")
    assert tied.get() == before
    whole = child.inside
    child.inside = Level(whole)
    try:
        answer = recommended(client, user_id="u010")
    finally:
        child.inside = whole
    assert tied.get() == before + 1
    assert [item["retrieval_rank"] for item in answer["items"]] == list(range(1, 11))
    assert "tandem_tied_total" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "exactly one of user_id, history and query"),
        ({"user_id": "u1", "query": "x"}, "exactly one of user_id, history and query"),
        ({"user_id": None}, "exactly one"),
        ({"query": "   "}, "the query is empty"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"user_id": 5}, "user_id: Input should be a valid string"),
        ({"user_id": "u" * 257}, "user_id: String should have at most 256"),
        ({"user_id": "u1", "limit": 0}, "limit: Input should be greater than or equal to 1"),
        ({"user_id": "u1", "limit": -3}, "limit"),
        ({"user_id": "u1", "limit": "many"}, "limit"),
        ({"user_id": "u1", "limit": 41}, "limit is 41, at most 40 are allowed"),
        ({"user_id": "u1", "limit": 10**30}, "limit is 1,000,000"),
        ({"user_id": "u1", "budget": {"depth": 10**9}}, "depth is 1,000,000,000, at most 200"),
        ({"user_id": "u1", "budget": {"max_ms": -1}}, "budget.max_ms"),
        ({"history": ["i01"] * 31}, "history is 31, at most 30"),
        ({"user_id": "u1", "rerank": "perhaps"}, "rerank: Input should be 'auto', 'always' or 'never'"),
        ({"user_id": "u1", "surprise": 1}, "surprise: Extra inputs are not permitted"),
        ([], "body"),
        ("text", "body"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client: Client, body, told: str):
    found = client.post("/v1/recommend", body)
    assert found.status_code == 422
    error = found.json()["error"]
    assert told in " ".join([error["message"], *error["faults"]])


def test_all_faults_are_told_together(client: Client):
    found = client.post("/v1/recommend", {"user_id": "u1", "limit": 0, "rerank": "x", "budget": {"depth": -1}})
    assert {fault.split(":")[0] for fault in found.json()["error"]["faults"]} == {"limit", "rerank", "budget.depth"}


@pytest.mark.parametrize(
    "text", ["\u0000\u0007", "مرحبا بالعالم", "日本語", "🎭" * 50, "<b>&amp;", "' OR 1=1 --", "i05\n"]
)
def test_ids_in_any_script_are_taken_as_they_are(client: Client, text: str):
    assert recommended(client, history=[text])["unknown_items"] == [text]
    assert recommended(client, user_id=text)["known_user"] is False


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b'{"user_id": "\\ud800"}', b'{"limit": NaN, "user_id": "u1"}', b"[" * 5000]
)
def test_bytes_that_are_no_json_are_refused(client: Client, raw: bytes):
    found = client.ask("POST", "/v1/recommend", content=raw, headers={"content-type": "application/json"})
    assert found.status_code == 422
    assert found.json()["request_id"] == found.headers["x-request-id"]
