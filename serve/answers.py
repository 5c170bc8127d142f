"""What answers say: their shape for the OpenAPI document, and their JSON."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from recommend.answer import RecommendedItem
from recommend.asking import Served
from recommend.ledger import Prices


class ReasonAnswer(BaseModel):
    """An item of the history that raised a recommendation."""

    item_id: str
    title: str
    share: float = Field(description="of all by which history items raised its score")


class ItemAnswer(BaseModel):
    """One place."""

    item_id: str
    title: str
    score: float = Field(description="falls along the list")
    retrieval_rank: int = Field(description="place after the first stage, from 1")
    rerank_rank: int | None = Field(description="place by the reranker's own score; null where it did not read it")
    retrieval_score: float
    rerank_score: float | None
    because: list[ReasonAnswer] = Field(description="with explain: the strongest first")
    sources: dict[str, float] = Field(
        description="with explain: each source's share in what lifts it above the list's end"
    )


class UsageAnswer(BaseModel):
    """What the answer cost."""

    prompt_tokens: int
    cached_tokens: int = Field(description="of these, the ones that the reranker remembered")
    candidates: int = Field(description="that the first stage found")
    reranked: int = Field(description="of these, the ones that the reranker read")
    cost: float = Field(description="by the prices of /v1/about")


class RecommendAnswer(BaseModel):
    """Recommendations, what they rest on, and what they cost."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "5f0c2a9be1d34c77",
                    "release": "0f1e2d3c4b5a",
                    "basis": "history",
                    "items": [
                        {
                            "item_id": "50",
                            "title": "Star Wars (1977)",
                            "score": 1.72,
                            "retrieval_rank": 3,
                            "rerank_rank": 1,
                            "retrieval_score": 1.31,
                            "rerank_score": 2.05,
                            "because": [],
                            "sources": {},
                        }
                    ],
                    "degraded": False,
                    "reason": "",
                    "left_out": "",
                    "unknown_items": [],
                    "known_user": True,
                    "stages": {"lookup_ms": 0.1, "retrieval_ms": 5.2, "rerank_ms": 78.0, "explain_ms": 0.0},
                    "usage": {
                        "prompt_tokens": 612,
                        "cached_tokens": 0,
                        "candidates": 100,
                        "reranked": 20,
                        "cost": 0.0,
                    },
                }
            ]
        }
    )

    request_id: str
    release: str = Field(description="what was served: the same name, the same artifacts")
    basis: str = Field(description="history, query, or recent popular items")
    items: list[ItemAnswer]
    degraded: bool = Field(description="less than was asked for, since the reranker failed or was too busy")
    reason: str = Field(description="why it was not reranked, or not as deep as asked; empty where it was")
    left_out: str = Field(
        description="what the request's own budget, or the service's time limit as max_ms, cut away; empty where "
        "everything fitted"
    )
    unknown_items: list[str] = Field(description="ids that the catalog lacks; they were passed over")
    known_user: bool = Field(description="false for a user of whom neither log nor events know anything")
    stages: dict[str, float] = Field(description="milliseconds of each stage")
    usage: UsageAnswer


class RerankResultAnswer(BaseModel):
    """One document."""

    index: int = Field(description="its place in the request, from 0")
    relevance_score: float = Field(description="in [0, 1]")
    document: dict[str, str] | None = Field(None, description="with return_documents: its text")


class RerankAnswer(BaseModel):
    """Documents in a better order."""

    id: str
    model: str
    results: list[RerankResultAnswer] = Field(description="the best first")
    truncated: int = Field(
        description="documents of which the reranker read the beginning alone: it was made for titles, and reads some "
        "twenty tokens of each (reranker.*.prompt.max_candidate_tokens), of a history the last items alone"
    )
    left_out: int = Field(description="documents, the last ones, that the service's time limit left no time for")
    known_user: bool = Field(
        description="false for a user of whom neither log nor events know anything: scored without a history"
    )
    usage: dict[str, int] = Field(description="prompt_tokens, cached_tokens, total_tokens")


class EventsAnswer(BaseModel):
    """Given when the events are on disk."""

    request_id: str
    accepted: int
    duplicates: int = Field(description="those whose event_id was stored before; they change nothing")
    unknown_items: list[str] = Field(description="ids that the catalog lacks; they count once it has them")


class ForgottenAnswer(BaseModel):
    """What a deletion took away."""

    request_id: str
    events: int = Field(description="deleted")
    history_items: int = Field(description="of the log; not used any more, and left out of the next training")
    caches: str = Field(description="what became of the reranker's memory")
    remains: str = Field(description="what the published release still holds, and until when")


class ItemStateAnswer(BaseModel):
    """What became of an item."""

    request_id: str
    item_id: str
    state: str = Field(description="added, updated, unchanged or removed")
    ignored: list[str] = Field(description="columns that the catalog does not have")


class FoundItem(BaseModel):
    """An item."""

    item_id: str
    title: str


class ItemsAnswer(BaseModel):
    """Items found."""

    request_id: str
    items: list[FoundItem]


class SimilarItem(FoundItem):
    """An item and how like it is."""

    score: float = Field(description="cosine of the texts' vectors")


class SimilarAnswer(BaseModel):
    """Items most alike in text."""

    request_id: str
    release: str
    items: list[SimilarItem]


class UsersAnswer(BaseModel):
    """Users found."""

    request_id: str
    users: list[str]


class HealthAnswer(BaseModel):
    """Whether it can answer."""

    status: str = Field(description="ok, degraded or failed")
    degraded: bool
    reasons: list[str]


class ErrorAnswer(BaseModel):
    """Any refusal."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "bad_input",
                        "message": "the request: limit is 1,000, at most 200 are allowed",
                        "faults": [],
                    },
                    "request_id": "5f0c2a9be1d34c77",
                }
            ]
        }
    )

    error: dict[str, Any] = Field(description="code, message, and faults where there are several")
    request_id: str


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain JSON; in ASCII, so that no text can be half of a character."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(body, status, headers, "application/json")


def error_response(
    status: int,
    message: str,
    request_id: str,
    *,
    code: str,
    faults: list[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A refusal in the one shape that all have."""
    content = {"error": {"code": code, "message": message, "faults": faults or []}, "request_id": request_id}
    return json_response(content, status, headers)


def recommend_answer(served: Served, request_id: str, prices: Prices) -> dict[str, Any]:
    """The JSON of RecommendAnswer."""
    answer, cost = served.answer, served.answer.cost
    recommender = served.serving.recommender
    return {
        "request_id": request_id,
        "release": served.serving.name,
        "basis": answer.basis.value,
        "items": [_item(one, recommender.title_of) for one in answer.items],
        "degraded": bool(answer.degraded or answer.gave_way),
        "reason": answer.gave_way or answer.not_reranked,
        "left_out": answer.left_out,
        "unknown_items": list(served.unknown_items),
        "known_user": served.known_user,
        "stages": {
            "lookup_ms": round(served.lookup_ms, 3),
            "retrieval_ms": round(cost.retrieval_ms, 3),
            "rerank_ms": round(cost.rerank_ms, 3),
            "explain_ms": round(cost.explain_ms, 3),
        },
        "usage": {
            "prompt_tokens": cost.prompt_tokens,
            "cached_tokens": cost.cached_tokens,
            "candidates": cost.candidates,
            "reranked": cost.reranked,
            "cost": cost.spent.cost(prices),
        },
    }


def _item(one: RecommendedItem, title_of: Any) -> dict[str, Any]:
    return {
        "item_id": one.item_id,
        "title": one.title,
        "score": one.score,
        "retrieval_rank": one.retrieval_rank,
        "rerank_rank": one.rerank_rank,
        "retrieval_score": one.retrieval_score,
        "rerank_score": one.rerank_score,
        "because": [
            {"item_id": item_id, "title": title_of(item_id), "share": share}
            for item_id, share in zip(one.because, one.shares, strict=True)
        ],
        "sources": dict(one.sources),
    }
