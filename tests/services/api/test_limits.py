"""What may be sent, how often, and what may be done with an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from services.api.limits import MAX_ADDRESSES, BodyLimit, Throttle
from services.dashboard import login
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.weight_samples import first_version

TOKEN = "the-right-one"


@pytest.fixture
async def guarded(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint:
        endpoint.store.publish(0, first_version())
        yield endpoint


def test_an_address_has_some_tries_at_once_and_then_one_for_each_pause() -> None:
    now = [0.0]
    throttle = Throttle(3, 2.0, clock=lambda: now[0])
    for _ in range(3):
        assert throttle.wait_s("a") == 0
        throttle.count("a")
    assert (throttle.wait_s("a"), throttle.wait_s("b")) == (2.0, 0)
    now[0] = 2.0
    assert throttle.wait_s("a") == 0
    throttle.count("a")
    assert throttle.wait_s("a") == 2.0
    now[0] = 100.0
    assert throttle.wait_s("a") == 0


def test_addresses_that_are_made_up_take_no_memory() -> None:
    throttle = Throttle(3, 2.0)
    for number in range(2 * MAX_ADDRESSES):
        throttle.count(str(number))
    assert len(throttle._free_at) == MAX_ADDRESSES


async def test_guessing_at_the_login_is_slowed_down(guarded: Endpoint) -> None:
    async with guarded.http(base_url="http://far.example") as http:
        wrong = [(await http.post("/login", data={"token": f"guess {number}"})) for number in range(login.TRIES + 2)]
        assert [answer.status_code for answer in wrong] == [401] * login.TRIES + [429] * 2
        assert int(wrong[-1].headers["Retry-After"]) >= 1
        assert (await http.post("/login", data={"token": TOKEN})).status_code == 429, "a right guess helps no more"
    async with guarded.http(token=TOKEN, base_url="http://far.example") as http:
        assert (await http.get("/v1/status")).status_code == 200, "who has the token is not locked out"


async def test_no_answer_is_kept_or_taken_for_another_type_unless_it_says_so(guarded: Endpoint) -> None:
    async with guarded.http(token=TOKEN, base_url="http://far.example") as http:
        for path in ("/healthz", "/v1/status", "/metrics", "/v1/events/last", "/no/such/route", "/v1/config", "/"):
            answer = await http.get(path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            assert answer.headers["Cache-Control"] in ("no-store", "no-cache"), path
        for path in ("/v1/rounds", "/v1/queue"):
            assert (await http.get(path)).headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(("token", "scope"), [(TOKEN, "private"), (None, "public")])
async def test_behind_a_token_no_shared_cache_keeps_weights(
    tmp_path: Path, redis_url: str, token: str | None, scope: str
) -> None:
    async with open_endpoint(tmp_path / "other", redis_url, token=token) as endpoint:
        (entry,) = endpoint.store.publish(0, first_version()).files
        async with endpoint.http(token=token) as http:
            answer = await http.get(f"/v1/weights/0/files/{entry.name}", params={"digest": entry.digest})
    assert answer.headers["Cache-Control"] == f"{scope}, max-age=31536000, immutable"


async def test_weights_are_never_compressed(guarded: Endpoint) -> None:
    async with guarded.http(token=TOKEN) as http:
        assert "gzip" in http.headers["Accept-Encoding"]
        answer = await http.get("/v1/weights/0")
    assert isinstance(answer, httpx.Response) and "Content-Encoding" not in answer.headers


LIMIT = 10


async def received(pieces: Sequence[bytes], kind: str = "http") -> list[bytes]:
    """The pieces that an app behind the limit gets to see; everything else it gets as it is."""
    seen: list[bytes] = []
    waiting = list(pieces)
    called = {"type": kind, "method": "POST", "path": "/somewhere", "headers": []}

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        raise AssertionError(f"nobody answers here, got {message}")

    async def app(scope: Scope, receive: Receive, send_on: Send) -> None:
        assert (scope, send_on) == (called, send)
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]

    await BodyLimit(app, longest=lambda method, path: LIMIT)(called, receive, send)
    return seen


@pytest.mark.parametrize("pieces", [[b""], [bytes(LIMIT)], [bytes(LIMIT - 1), b"", b"x"], [b"x"] * LIMIT])
async def test_what_is_within_the_limit_passes_untouched(pieces: list[bytes]) -> None:
    assert await received(pieces) == pieces


@pytest.mark.parametrize("pieces", [[bytes(LIMIT + 1)], [bytes(LIMIT), b"x"], [b"x"] * (LIMIT + 1)])
async def test_one_byte_more_is_refused_in_however_many_pieces(pieces: list[bytes]) -> None:
    with pytest.raises(HTTPException, match="limit of 10 bytes") as refused:
        await received(pieces)
    assert refused.value.status_code == 413


async def test_each_request_has_the_whole_limit() -> None:
    for _ in range(3):
        assert await received([bytes(LIMIT)]) == [bytes(LIMIT)]


async def test_only_bodies_of_requests_are_counted() -> None:
    assert await received([bytes(LIMIT + 1)], "websocket") == [bytes(LIMIT + 1)]
