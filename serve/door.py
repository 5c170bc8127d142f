"""Who comes in: request ids, hosts, keys, and a line in the log for everybody who leaves."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.answers import error_response
from serve.keys import Keys, Scope
from serve.logs import ACCESS, FIELDS
from serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REQUEST_ID, TOLD = "request_id", "told"
"""In a request's state: its id, and what handlers add to its line in the log."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
OPEN = frozenset({"/v1/health", "/v1/ready"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_LOG = logging.getLogger(ACCESS)


class Door:
    """ASGI middleware around the whole application.

    Args:
        app: what is inside.
        keys: that open it; None: everybody on this machine may come in, and only they.
        metrics: where requests are counted.
    """

    def __init__(self, app: App, *, keys: Keys | None, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state[REQUEST_ID], state[TOLD] = request_id, {}
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                theirs = list(message.get("headers", []))
                named = {name for name, _ in theirs}
                message["headers"] = [
                    *theirs,
                    (b"x-request-id", request_id.encode()),
                    *(pair for pair in _HEADERS if pair[0] not in named),
                ]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            refusal = self._refusal(scope, headers, request_id)
            await (refusal or self._app)(scope, receive, sending)
        finally:
            self._metrics.in_flight.dec()
            self._leave(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes], request_id: str) -> App | None:
        path: str = scope["path"]
        if self._keys is None:
            # A page from elsewhere whose name was made to lead here still sends that name.
            if _host(headers) not in LOOPBACK:
                return error_response(
                    403, "without keys this server is for its own machine alone", request_id, code="refused"
                )
            return None
        if path in OPEN or not (path.startswith("/v1/") or path.startswith("/v2/") or path == "/metrics"):
            return None
        scopes = self._keys.scopes_of(_key_of(headers))
        if not scopes:
            return error_response(
                401,
                "no good key: send it as 'Authorization: Bearer KEY'",
                request_id,
                code="key",
                headers={"www-authenticate": "Bearer"},
            )
        needed = needed_scope(scope["method"], path)
        if needed not in scopes:
            return error_response(403, f"this key is not for {needed}", request_id, code="key")
        return None

    def _leave(self, scope: Message, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        state = scope["state"]
        fields = {
            "request_id": state[REQUEST_ID],
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            **state[TOLD],
        }
        _LOG.info("request", extra={FIELDS: fields})


def needed_scope(method: str, path: str) -> Scope:
    """What a key must open for this request."""
    writes = method in {"PUT", "DELETE", "PATCH"} or (method == "POST" and path == "/v1/events")
    return Scope.WRITE if writes else Scope.READ


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def _host(headers: dict[bytes, bytes]) -> str:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return re.sub(r":\d*$", "", host)


def _key_of(headers: dict[bytes, bytes]) -> str:
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")
