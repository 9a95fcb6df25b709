"""Error responses: one JSON form for all, and the HTTP status of each kind of error."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from services.errors import (
    ContractError,
    DeadlineError,
    SeptError,
    UnavailableError,
    VersionNotFoundError,
    WeightError,
)

log = structlog.get_logger()

STATUS_OF: tuple[tuple[type[SeptError], int], ...] = (
    (VersionNotFoundError, 404),
    (WeightError, 409),
    (ContractError, 422),
    (UnavailableError, 503),
    (DeadlineError, 504),
)
"""The first match counts; any other SeptError is an error of the server, 500."""


class ErrorBody(BaseModel):
    """Body of every answer from 400 upwards."""

    error: str
    """What happened, the value and the limit."""
    hint: str = ""
    """What to do about it."""


DESCRIPTIONS = {
    400: "Malformed request",
    401: "No valid token",
    403: "Not for the role of this token, or not from this machine's own pages",
    404: "No such version or file",
    409: "Contradicts what the store holds, or the bytes are not what the manifest promises",
    413: "Longer than allowed",
    416: "Range not satisfiable",
    422: "Does not keep the contract",
    429: "Too many tries; Retry-After says when the next may come",
    503: "Redis cannot be reached, the disk cannot be written, or too many ask for the same",
}


def may_answer(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the refusals of a route; those of the authentication are always among them."""
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in (401, 403, *statuses)}


def install(app: FastAPI) -> None:
    """Give the app one handler per family of errors."""
    app.add_exception_handler(SeptError, _of_ours)
    app.add_exception_handler(RedisError, _of_redis)
    app.add_exception_handler(RequestValidationError, _of_input)
    app.add_exception_handler(HTTPException, _of_http)


def _answer(status: int, error: str, hint: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse(ErrorBody(error=error, hint=hint).model_dump(), status_code=status, headers=headers)


async def _of_ours(request: Request, error: Exception) -> JSONResponse:
    status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
    if status >= 500:
        log.warning("request_failed", path=request.url.path, status=status, reason=str(error))
    message, hint = (error.message, error.hint) if isinstance(error, SeptError) else (str(error), "")
    return _answer(status, message, hint)


async def _of_redis(request: Request, error: Exception) -> JSONResponse:
    log.warning("redis_failed", path=request.url.path, reason=type(error).__name__)
    return _answer(503, f"Redis does not answer: {type(error).__name__}", "see the log of the services")


async def _of_input(request: Request, error: Exception) -> JSONResponse:
    """Names the fields only: the input itself may not be serialisable (NaN), and should not be echoed."""
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    places = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in errors[:5])
    return _answer(422, places, "see /openapi.json for what this route takes")


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    return _answer(error.status_code, str(error.detail), headers=error.headers)
