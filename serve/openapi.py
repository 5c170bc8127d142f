"""The OpenAPI document, and a page that shows it without loading anything from elsewhere."""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse

from serve.answers import ErrorAnswer
from serve.bodies import EventBody, EventsBody, ItemBody, RecommendBody, RerankBody

BODIES: dict[str, list[type[BaseModel]]] = {
    "/v1/recommend": [RecommendBody],
    "/v1/rerank": [RerankBody],
    "/v1/events": [EventsBody, EventBody],
    "/v1/items/{item_id}": [ItemBody],
}
"""Bodies are read from their bytes in one go, of which FastAPI knows nothing."""
OPEN = ("/v1/health", "/v1/ready")
REFUSALS = {
    "400": "a body that ended early",
    "401": "no good key",
    "403": "a key for something else",
    "404": "no such item, user or report",
    "408": "a body that did not come in time",
    "409": "the run lacks a step; the message names the command",
    "413": "a body over the limit",
    "415": "a body that is not called JSON",
    "422": "everything that is wrong with the request",
    "429": "too many requests at once; Retry-After says when to come back",
    "503": "not at this moment: the run is being written, a release is being opened, the reranker is away, or it took "
    "five times the time limit; Retry-After says when to come back",
    "507": "the disk is full or refuses the write",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def describe(app: FastAPI) -> None:
    """Adds what the document lacks, and the page at /docs."""
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's own way to change it

    @app.get("/docs", include_in_schema=False)
    async def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"content-security-policy": _POLICY})


def page(document: dict[str, Any]) -> str:
    """The document for people."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    templates.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return templates.get_template("docs.html.j2").render(document=document, resolve=lambda ref: _at(document, ref))


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(
            title="Tandem",
            version="1",
            description="Recommendations in two stages. Send a key as 'Authorization: Bearer KEY'.",
            routes=app.routes,
        )
        _complete(made)
        app.openapi_schema = made
    return app.openapi_schema


def _complete(made: dict[str, Any]) -> None:
    models: list[type[BaseModel]] = [ErrorAnswer, *(model for several in BODIES.values() for model in several)]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    components = made.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, operation, reads_body=method in {"post", "put"})


def _complete_operation(path: str, operation: dict[str, Any], *, reads_body: bool) -> None:
    if path not in OPEN:
        operation["security"] = [{"key": []}]
    if reads_body and path in BODIES:
        refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in BODIES[path]]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for status, words in REFUSALS.items():
        if status == "503" and status in operation["responses"]:
            continue  # health and readiness say it in their own shape
        operation["responses"][status] = {"description": words, "content": error}


def _at(document: dict[str, Any], ref: str) -> Any:
    found: Any = document
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found
