"""Every error as JSON in one shape, with its HTTP status."""

import logging
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from recommend.item_filter import FilterFault
from recommend.microbatch import Crowded
from recommend.supervised import RerankerFailure
from serve.admission import Busy, Slow
from serve.answers import error_response
from serve.context import request_id_of, server_of
from store.errors import BadInput, Mismatch, MissingStep, NoSpace, RunBusy, TandemError, UnknownId

STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownId, 404, "unknown_id"),
    (FilterFault, 422, "filter"),
    (BadInput, 422, "bad_input"),
    (MissingStep, 409, "missing_step"),
    (Mismatch, 503, "changing"),
    (Crowded, 429, "busy"),
    (RerankerFailure, 503, "reranker"),
    (RunBusy, 503, "run_busy"),
    (Slow, 503, "slow"),
    (NoSpace, 507, "no_space"),
)
"""Of errors that are not HTTP's own; whatever else is met is a bug, and 500."""
REFUSED = (Busy, HTTPException, ValidationError, RequestValidationError, TandemError, ClientDisconnect, Exception)
RETRY_S = 2
MOST_FAULTS = 20
_LOG = logging.getLogger(__name__)


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to an error."""
    request_id = request_id_of(request)
    if isinstance(error, Busy):
        server_of(request).metrics.refused.inc()
        return error_response(429, str(error), request_id, code="busy", headers={"retry-after": str(error.retry_s)})
    if isinstance(error, ValidationError | RequestValidationError):
        faults = _faults(error)
        return error_response(422, faults[0], request_id, code="invalid", faults=faults)
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), request_id, code="refused", headers=error.headers)
    if isinstance(error, ClientDisconnect):
        return error_response(400, "the body ended early", request_id, code="refused")
    if isinstance(error, Crowded):
        server_of(request).metrics.refused.inc()
    status, code = next(((status, code) for kind, status, code in STATUS if isinstance(error, kind)), (500, "bug"))
    if status == 500:
        _LOG.error("a request failed", exc_info=error)
        return error_response(500, "this should not have happened; the log has more", request_id, code=code)
    retry = {"retry-after": str(RETRY_S)} if status in {429, 503} else None
    return error_response(status, str(error), request_id, code=code, headers=retry)


def _faults(error: ValidationError | RequestValidationError) -> list[str]:
    """What is wrong, each with its place; not what was sent, which may be long or private."""
    found: list[Any] = list(error.errors())
    told = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found]
    return [*told[:MOST_FAULTS], *([f"and {len(told) - MOST_FAULTS} more"] if len(told) > MOST_FAULTS else [])]
