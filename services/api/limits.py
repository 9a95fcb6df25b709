"""Limits of what a request may send and how often, and of what may be done with an answer.

The head of a request and its connection are limited where they are parsed (`services.api.connections`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_ADDRESSES = 4096
"""Addresses that a throttle remembers; the one that tried longest ago is forgotten first."""

COMPRESSED_FROM_BYTES = 2048
COMPRESS_LEVEL = 4
"""256 kB of rounds in some milliseconds, to a third."""

TOO_LONG = "the body exceeds the limit of {} bytes"


class BodyLimit:
    """ASGI layer that answers 413 to a longer request body than `longest(method, path)`, in bytes.

    A body that announces its length is refused unread; the connection ends after the answer.
    """

    def __init__(self, app: ASGIApp, *, longest: Callable[[str, str], int]) -> None:
        self._app = app
        self._longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        longest = self._longest(scope["method"], scope["path"])
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or int(announced[:20]) > longest:
            refusal = {"error": TOO_LONG.format(longest), "hint": ""}
            await JSONResponse(refusal, 413)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > longest:
                raise HTTPException(413, TOO_LONG.format(longest))
            return message

        await self._app(scope, counted, send)


class SafeHeaders:
    """ASGI layer: no answer is taken for another type than it says, and nobody keeps one who must not.

    What does not say how long it may be kept is not kept. `private`: a shared cache keeps nothing at all, as it would
    give it to people without a token.
    """

    def __init__(self, app: ASGIApp, *, private: bool) -> None:
        self._app = app
        self._private = private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                kept = headers.setdefault("Cache-Control", "no-store")
                if self._private and kept.startswith("public"):
                    headers["Cache-Control"] = kept.replace("public", "private", 1)
            await send(message)

        await self._app(scope, receive, with_headers)


class Compressed:
    """ASGI layer that compresses what a client takes compressed, but for the paths below `plain`."""

    def __init__(self, app: ASGIApp, *, plain: str) -> None:
        self._app = app
        self._compressing = GZipMiddleware(app, minimum_size=COMPRESSED_FROM_BYTES, compresslevel=COMPRESS_LEVEL)
        self._plain = plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] != "http" or scope["path"].startswith(self._plain)
        await (self._app if plain else self._compressing)(scope, receive, send)


class Throttle:
    """Slows down what an address tries too often: `burst` at once, then one for every `every_s` seconds.

    throttle.count("10.0.0.7")      # a try that failed
    throttle.wait_s("10.0.0.7")     # 0.0: the next may come now
    """

    def __init__(self, burst: int, every_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """Address -> when all its tries are forgiven."""

    def wait_s(self, address: str) -> float:
        """How long this address has to wait before its next try."""
        excess_s = self._free_at.get(address, 0.0) - self._clock() - (self._burst - 1) * self._every_s
        return max(0.0, excess_s)

    def count(self, address: str) -> None:
        """One more try."""
        self._free_at[address] = max(self._free_at.pop(address, 0.0), self._clock()) + self._every_s
        if len(self._free_at) > MAX_ADDRESSES:
            self._free_at.popitem(last=False)
