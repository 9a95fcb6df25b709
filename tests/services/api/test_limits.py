"""How much a request may send, counted over all the pieces in which it comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from services.api.limits import BodyLimit

LIMIT = 10


async def received(pieces: Sequence[bytes], kind: str = "http") -> list[bytes]:
    """The pieces that an app behind the limit gets to see; everything else it gets as it is."""
    seen: list[bytes] = []
    waiting = list(pieces)
    called = {"type": kind}

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

    await BodyLimit(app, max_bytes=LIMIT)(called, receive, send)
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
