"""Every error becomes one form of answer, with the status of its kind and nothing of what was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from redis.exceptions import ConnectionError as RedisConnectionError

from services import errors
from services.api.error_responses import DESCRIPTIONS, install, may_answer

RAISED: dict[str, Exception] = {
    "gone": errors.VersionNotFoundError("version 3 is gone", hint="ask for the latest"),
    "contradiction": errors.WeightError("another run"),
    "digest": errors.DigestError("other bytes"),
    "contract": errors.ContractError("no manifest"),
    "away": errors.UnavailableError("the disk is full"),
    "late": errors.DeadlineError("Redis", "an answer", 3.0),
    "ours": errors.CheckpointError("none"),
    "redis": RedisConnectionError("password=hush"),
}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install(app)

    @app.get("/raise/{kind}")
    async def fail(kind: str, number: int = 0) -> None:
        raise RAISED[kind]

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("gone", 404),
        ("contradiction", 409),
        ("digest", 409),
        ("contract", 422),
        ("away", 503),
        ("late", 504),
        ("ours", 500),
        ("redis", 503),
    ],
)
async def test_every_error_has_its_status_and_its_words(http: httpx.AsyncClient, kind: str, status: int) -> None:
    answer = await http.get(f"/raise/{kind}")
    assert answer.status_code == status
    error = RAISED[kind]
    if isinstance(error, errors.SeptError):
        assert answer.json() == {"error": error.message, "hint": error.hint}
    else:
        assert answer.json()["error"] == "Redis does not answer: ConnectionError"
        assert "hush" not in answer.text


async def test_what_was_sent_is_named_and_not_echoed(http: httpx.AsyncClient) -> None:
    answer = await http.get("/raise/gone", params={"number": "secret"})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("query.number: ")
    assert "secret" not in answer.text


async def test_an_unknown_route_and_a_wrong_method_have_the_same_form(http: httpx.AsyncClient) -> None:
    assert (await http.get("/nothing")).json() == {"error": "Not Found", "hint": ""}
    answer = await http.post("/raise/gone")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json() == {"error": "Method Not Allowed", "hint": ""}


def test_a_route_documents_the_guard_s_refusals_and_its_own() -> None:
    assert list(may_answer()) == [401, 403]
    assert list(may_answer(404, 503)) == [401, 403, 404, 503]
    assert all(entry["description"] == DESCRIPTIONS[int(status)] for status, entry in may_answer(409).items())
