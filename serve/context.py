"""What the routes of one application share, and how they read what is sent."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from recommend.service import Service
from serve.admission import Admission
from serve.door import REQUEST_ID, TOLD
from serve.keys import Keys
from serve.limits import ServeConfig
from serve.metrics import Metrics
from store.errors import BadInput

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=BaseModel)
BODY_S = 10.0
"""How long a client may take to send a body."""


@dataclass
class Server:
    """What the routes share.

    Attributes:
        page: the folder of the web page.
        is_leaving: whether it has been told to end.
    """

    service: Service
    limits: ServeConfig
    keys: Keys | None
    page: Path | None = None
    metrics: Metrics = field(default_factory=Metrics)
    is_leaving: Callable[[], bool] = lambda: False
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.service.watchers.append(lambda: self.metrics.show(self.service))

    def faults(self) -> list[str]:
        """Why it cannot answer, or not for long; empty where it can."""
        return [*(["it has been told to end"] if self.is_leaving() else []), *self.service.faults()]

    async def work(self, function: Callable[[], T]) -> T:
        """Blocking work, in a thread; see Admission.work."""
        return await self.admission.work(function)

    async def body(self, request: Request, model: type[BodyT]) -> BodyT:
        """The validated body.

        Raises:
            ValidationError: with all that is wrong with it.
            HTTPException: when it is too large or slow, or no JSON by its name.
        """
        return model.model_validate_json(await self.bytes_of(request))

    async def json_of(self, request: Request) -> Any:
        """The body as plain JSON.

        Raises:
            BadInput: when it is none.
            HTTPException: as `body`.
        """
        try:
            return from_json(await self.bytes_of(request), allow_inf_nan=False)
        except ValueError as error:
            raise BadInput(f"the body is no JSON: {error}") from error

    async def bytes_of(self, request: Request) -> bytes:
        """The body, as far as it may be long and slow; errors as `body`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page from elsewhere may send other kinds without asking first.
        if kind != "application/json":
            raise HTTPException(415, "send JSON, with the header 'Content-Type: application/json'")
        most = self.limits.max_body_kb * 1024
        too_large = HTTPException(413, f"the body is larger than {self.limits.max_body_kb} kB")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {BODY_S:g} s") from error
        return bytes(body)


def server_of(request: Request) -> Server:
    """What the routes share."""
    found: Server = request.app.state.server
    return found


def told(request: Request) -> dict[str, Any]:
    """What goes into the request's line in the log."""
    found: dict[str, Any] = request.scope["state"][TOLD]
    return found


def request_id_of(request: Request) -> str:
    """The id that answer and log share."""
    return str(request.scope["state"][REQUEST_ID])
