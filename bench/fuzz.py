"""Requests that nobody would send on purpose: drawn from an OpenAPI document, and bodies with bytes changed."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BODIES: dict[str, list[Any]] = {
    "/v1/recommend": [
        {"user_id": "1", "limit": 3, "explain": True},
        {"history": ["1", "2"], "budget": {"depth": 2, "max_ms": 50.5, "max_tokens": 40}, "exclude_items": ["3"]},
        {"query": "a quiet film", "rerank": "always", "where": "item_id <> '1'"},
        {"history": ["1"], "where": "(" * 900 + "item_id = '1'"},
        {"history": ["1"], "where": "item_id = '1'" + "||''" * 490},
    ],
    "/v1/rerank": [{"query": "garden", "documents": ["a spade", {"text": "a novel"}], "top_n": 1}],
    "/v1/events": [
        {"events": [{"event_id": "fuzz", "user_id": "fuzz", "item_id": "1", "timestamp": 1_700_000_000}]},
        {"event_id": "fuzz", "user_id": "fuzz", "item_id": "1"},
    ],
}
JSON = {"content-type": "application/json"}
ODD = (
    b"null",
    b"-1",
    b"1e999",
    b"9" * 400,
    b'"\\ud800"',
    b'"\\u0000"',
    b"[[[[",
    b"{}",
    b"true",
    b"NaN",
    b'""',
    b"\xff",
)


@dataclass(frozen=True)
class Shot:
    """One request; `url` begins with the path."""

    method: str
    url: str
    params: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def flat_params(self) -> dict[str, str] | None:
        """As a query."""
        return None if self.params is None else {str(name): str(value) for name, value in self.params.items()}

    @property
    def plain_headers(self) -> dict[str, str]:
        """Those that an HTTP client can send; the others say nothing about a server."""
        # Nor may one end in a space: a key that is empty leaves "Bearer ".
        words = {name: f"{name}{value}" for name, value in self.headers.items() if value == value.strip()}
        return {name: self.headers[name] for name, word in words.items() if word.isascii() and word.isprintable()}


def mutated(count: int, seed: int) -> Iterator[Shot]:
    """Good bodies with some bytes or values changed."""
    rng = random.Random(seed)
    bodies = [(path, json.dumps(body).encode()) for path, several in BODIES.items() for body in several]
    for _ in range(count):
        path, body = rng.choice(bodies)
        yield Shot("POST", path, content=_changed(body, rng), headers=JSON)


def drawn(document: dict[str, Any], each: int, seed: int) -> Iterator[Shot]:
    """For every operation of the document `each` requests that keep to it, and as many that do not."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    quiet: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "deadline": None, "database": None}
    operations: Any = schemathesis.openapi.from_dict(document).get_all_operations()
    for found in operations:
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases: list[Any] = []
            collect = given(case=operation.as_strategy(generation_mode=mode))(_into(cases))
            # Where nothing could be wrong with an operation there are no such cases.
            with suppress(Unsatisfiable):
                seeded(seed)(settings(max_examples=each, phases=[Phase.generate], **quiet)(collect))()
            yield from map(_shot, cases)


def _into(cases: list[Any]) -> Callable[[Any], None]:
    def collect(case: Any) -> None:
        cases.append(case)

    return collect


def _shot(case: Any) -> Shot:
    sent = case.as_transport_kwargs(base_url="http://h")
    headers = {name: value for name, value in sent.get("headers", {}).items() if not name.startswith(("X-S", "User"))}
    content = sent.get("data")
    if "json" in sent:
        content, headers["Content-Type"] = json.dumps(sent["json"]).encode(), "application/json"
    if content is not None and not isinstance(content, bytes):
        content = str(content).encode()
    return Shot(sent["method"], sent["url"].removeprefix("http://h"), sent.get("params"), content, headers)


def _changed(body: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    place = rng.randrange(len(body))
    if kind == 0:
        return body[:place]
    if kind == 1:
        return body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
    if kind == 2:
        return body[:place] + rng.choice(ODD) + body[place:]
    if kind == 3:
        return body[:place] + body[rng.randrange(len(body)) :]
    value = body.index(b":", rng.randrange(body.index(b":") + 1)) + 1
    return body[:value] + rng.choice(ODD) + body[_end(body, value) :]


def _end(body: bytes, start: int) -> int:
    ends = [at for mark in (b",", b"}", b"]") if (at := body.find(mark, start)) >= 0]
    return min(ends, default=len(body))
