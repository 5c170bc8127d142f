"""The API."""

import asyncio
import math
import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from recommend.events import Event
from recommend.service import SIMILAR
from serve import answers
from serve.answers import json_response
from serve.bodies import ItemBody, RecommendBody, RerankBody, check, events_of
from serve.context import request_id_of, server_of, told
from serve.report import newest_report

router = APIRouter()
ItemId = Annotated[str, Path(max_length=256, description="of the catalog")]
UserId = Annotated[str, Path(max_length=256, description="of the log or of events")]
Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]
SimilarLimit = Annotated[
    int | None, Query(ge=1, le=200, description=f"how many; unset: {SIMILAR}, or fewer of a small catalog")
]
AWAY: dict[int | str, dict[str, Any]] = {503: {"model": answers.HealthAnswer, "description": "why not"}}
Search = Annotated[str, Query(max_length=200, description="words, in any order")]


@router.post("/v1/recommend", response_model=answers.RecommendAnswer, tags=["recommend"])
async def recommend(request: Request) -> Response:
    """Recommendations for a user, a history or a query, with places, reasons and costs."""
    server = server_of(request)
    ask = (await server.body(request, RecommendBody)).ask(server.limits)
    request_id = request_id_of(request)

    def answered() -> tuple[Response, dict[str, Any]]:
        served = server.service.recommend(ask)
        prices = served.serving.recommender.config.prices
        content = answers.recommend_answer(served, request_id, prices)
        fields: dict[str, Any] = {
            "release": content["release"],
            "depth": served.answer.cost.reranked,
            "tokens": served.answer.cost.prompt_tokens,
            "degraded": server.metrics.served(served),
        }
        if ask.user_id is not None:
            fields["user"] = server.service.events.hashed(ask.user_id)
        if server.limits.log_content:
            fields["items"] = [item.item_id for item in served.answer.items]
        return json_response(content), fields

    response, fields = await server.work(answered)
    told(request).update(fields)
    return response


@router.post("/v2/rerank", response_model=answers.RerankAnswer, include_in_schema=False)
@router.post("/v1/rerank", response_model=answers.RerankAnswer, tags=["recommend"])
async def rerank(request: Request) -> Response:
    """Documents put in order by the reranker, in the shape that clients of Cohere and Jina know."""
    server = server_of(request)
    asked = await server.body(request, RerankBody)
    check(server.limits, documents=len(asked.documents))
    texts = asked.texts

    def answered() -> tuple[Response, dict[str, Any]]:
        query = asked.query if asked.query is not None else ""
        # A query may hold a history, one item a line, as Gorse's template writes it.
        lines = [line for line in query.split("\n") if line.strip()]
        history, known = (lines, True) if asked.user_id is None else server.service.texts_of(asked.user_id)
        started = time.perf_counter()
        found = server.service.rerank(history[-server.limits.max_history :], texts)
        server.metrics.reranked_documents(found, time.perf_counter() - started)
        scores = found.scores[0]
        order = np.argsort(-scores, kind="stable")[: asked.top_n or len(scores)].tolist()
        results = [
            {
                "index": place,
                "relevance_score": _sigmoid(float(scores[place])),
                **({"document": {"text": texts[place]}} if asked.return_documents else {}),
            }
            for place in order
        ]
        prompt, cached = found.prompt_tokens[0], found.cached_tokens[0]
        content = {
            "id": request_id_of(request),
            "model": server.service.serving.name,
            "results": results,
            "truncated": found.cut_candidates[0],
            "left_out": len(texts) - len(scores),
            "known_user": known,
            "usage": {"prompt_tokens": prompt, "cached_tokens": cached, "total_tokens": prompt},
        }
        return json_response(content), {"depth": len(scores), "tokens": prompt}

    response, fields = await server.work(answered)
    told(request).update(fields)
    return response


@router.post("/v1/events", response_model=answers.EventsAnswer, tags=["events"])
async def events(request: Request) -> Response:
    """One event or a batch: on disk when answered, seen by the user's next recommendation."""
    server = server_of(request)
    taken: list[Event] = events_of(await server.json_of(request)).taken(server.limits)
    stored, unknown = await server.work(lambda: server.service.store(taken))
    server.metrics.events.labels("accepted").inc(stored.accepted)
    server.metrics.events.labels("duplicate").inc(stored.duplicates)
    told(request)["events"] = stored.accepted
    return json_response(
        {
            "request_id": request_id_of(request),
            "accepted": stored.accepted,
            "duplicates": stored.duplicates,
            "unknown_items": list(unknown),
        }
    )


@router.delete("/v1/users/{user_id:path}", response_model=answers.ForgottenAnswer, tags=["events"])
async def forget(request: Request, user_id: UserId) -> Response:
    """Forgets a user, durably: events, history, and what the reranker remembers."""
    server = server_of(request)
    gone = await server.work(lambda: server.service.forget(user_id))
    told(request)["user"] = server.service.events.hashed(user_id)
    return json_response(
        {
            "request_id": request_id_of(request),
            "events": gone.events,
            "history_items": gone.history_items,
            "caches": "the reranker's memory of histories was emptied",
            "remains": "the published data set and models until the next training, which leaves this user out"
            if gone.in_data
            else "nothing",
        }
    )


@router.put("/v1/items/{item_id:path}", response_model=answers.ItemStateAnswer, tags=["catalog"])
async def put_item(request: Request, item_id: ItemId) -> Response:
    """Adds an item or changes it: on disk and among what is recommended when answered."""
    server = server_of(request)
    values = await server.body(request, ItemBody)
    found = await server.work(lambda: server.service.put(item_id, values.root))
    content = {"request_id": request_id_of(request), "item_id": item_id, "state": found.state}
    return json_response({**content, "ignored": list(found.ignored)})


@router.delete("/v1/items/{item_id:path}", response_model=answers.ItemStateAnswer, tags=["catalog"])
async def remove_item(request: Request, item_id: ItemId) -> Response:
    """Takes an item out of every answer; it stays in histories, and may come back."""
    server = server_of(request)
    found = await server.work(lambda: server.service.remove(item_id))
    content = {"request_id": request_id_of(request), "item_id": item_id, "state": found.state, "ignored": []}
    return json_response(content)


@router.get("/v1/items/{item_id:path}/similar", response_model=answers.SimilarAnswer, tags=["catalog"])
async def similar(request: Request, item_id: ItemId, limit: SimilarLimit = None) -> Response:
    """The items whose texts are most alike."""
    server = server_of(request)
    serving, found = await server.work(lambda: server.service.similar(item_id, limit))
    recommender = serving.recommender
    items = [
        {"item_id": recommender.catalog.vocabulary.ids[row], "title": recommender.titles[row], "score": score}
        for row, score in found
    ]
    return json_response({"request_id": request_id_of(request), "release": serving.name, "items": items})


@router.get("/v1/items", response_model=answers.ItemsAnswer, tags=["catalog"])
async def items(request: Request, search: Search = "", limit: Limit = 20) -> Response:
    """Items whose title holds every word of a search, the most taken first."""
    server = server_of(request)
    serving = server.service.serving
    rows = await server.work(lambda: serving.directory.items(search, limit).tolist())
    recommender = serving.recommender
    found = [{"item_id": recommender.catalog.vocabulary.ids[row], "title": recommender.titles[row]} for row in rows]
    return json_response({"request_id": request_id_of(request), "items": found})


@router.get("/v1/users", response_model=answers.UsersAnswer, tags=["catalog"])
async def users(request: Request, search: Search = "", limit: Limit = 20) -> Response:
    """Users of the log whose id holds a text."""
    server = server_of(request)
    found = await server.work(lambda: server.service.users(search, limit))
    return json_response({"request_id": request_id_of(request), "users": found})


@router.get("/v1/report", tags=["about"])
async def report(request: Request) -> Response:
    """The newest evaluation report of the run, as report.json has it."""
    server = server_of(request)
    body = await server.work(lambda: newest_report(server.service.run))
    return Response(body, media_type="application/json")


@router.get("/v1/about", tags=["about"])
async def about(request: Request) -> Response:
    """What is served, by which defaults and limits, and at which prices."""
    server = server_of(request)
    serving, limits = server.service.serving, server.limits
    recommender = serving.recommender
    config = recommender.config
    ready, count = await server.work(
        lambda: (serving.child is not None and serving.child.is_ready, len(server.service.events))
    )
    return json_response(
        {
            "request_id": request_id_of(request),
            "release": serving.name,
            "fit": recommender.fit,
            "items": serving.items,
            "users": len(recommender.users),
            "interactions": len(recommender.interactions.item_rows),
            "events": count,
            "columns": list(recommender.catalog.items.columns),
            "reranker": {
                "present": serving.child is not None,
                "helps": recommender.reranker_helps,
                "ready": ready,
            },
            "defaults": {
                "k": config.k,
                "candidates": config.candidates,
                "depth": config.depth or 0,
                "exclude_known": config.exclude_known,
                "gate_share": config.gate_share,
            },
            "limits": {
                "limit": min(limits.max_limit, serving.items),
                "depth": min(limits.max_depth, config.candidates),
                "history": limits.max_history,
                "documents": limits.max_documents,
                "events": limits.max_events,
            },
            "prices": config.prices.model_dump(mode="json"),
        }
    )


@router.get("/v1/health", response_model=answers.HealthAnswer, responses=AWAY, tags=["about"])
async def health(request: Request) -> Response:
    """200 while it can answer, with what is wrong; 503 where it cannot, or has been told to end; needs no key."""
    server = server_of(request)
    faults, troubles = await asyncio.to_thread(lambda: (server.faults(), server.service.troubles()))
    return _state(faults, troubles, good=not faults)


@router.get("/v1/ready", response_model=answers.HealthAnswer, responses=AWAY, tags=["about"])
async def ready(request: Request) -> Response:
    """200 once the reranker answers, too, where there is one; 503 before; needs no key."""
    server = server_of(request)

    def looked() -> tuple[list[str], list[str]]:
        ready = server.service.serving.reranker_is_ready
        return server.faults(), [] if ready else server.service.troubles()

    faults, troubles = await asyncio.to_thread(looked)
    return _state(faults, troubles, good=not faults and not troubles)


@router.get("/metrics", tags=["about"])
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    server = server_of(request)
    body, kind = await asyncio.to_thread(server.metrics.text, server.service)
    return Response(body, media_type=kind)


def _state(faults: list[str], troubles: list[str], *, good: bool) -> Response:
    status = "failed" if faults else "degraded" if troubles else "ok"
    content = {"status": status, "degraded": bool(faults or troubles), "reasons": [*faults, *troubles]}
    return json_response(content, 200 if good else 503)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
