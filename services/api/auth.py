"""Who may talk to the endpoint: a bearer token, or on loopback this machine's own programs. Knows no route.

It is a layer around the whole app, so that a route added later is closed by default.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

OPEN_PATHS = frozenset({"/healthz"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY_VIOLATION = 1008
"""WebSocket close code of RFC 6455."""


class Guard:
    """ASGI layer that answers 401 or 403 itself and lets nothing else through.

    With a token every request must carry it. Without one (the app is then bound to loopback; the caller sees to it) a
    web page open in a browser of this machine is kept out: its requests name its own origin, and a host that was
    made to resolve to 127.0.0.1 is not one of the loopback names.
    """

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._token_refusal(headers) if self._token else _origin_refusal(headers)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _token_refusal(self, headers: Headers) -> JSONResponse | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # compared as bytes: compare_digest refuses text beyond ASCII
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token or b""):
            return None
        return _refusal(
            401,
            "the request carries no valid token",
            "send the header Authorization: Bearer TOKEN with the value of services.token",
            {"WWW-Authenticate": "Bearer"},
        )


def _origin_refusal(headers: Headers) -> JSONResponse | None:
    host = headers.get("host", "")
    if _hostname(f"//{host}") not in LOOPBACK_NAMES:
        return _refusal(
            403, f"host {host[:80]!r} is not this machine's loopback address", "use 127.0.0.1 or set services.token"
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return _refusal(
            403, f"origin {origin[:80]!r} may not use this endpoint", "open the page from this endpoint itself"
        )
    return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _refusal(status: int, error: str, hint: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "hint": hint}, status_code=status, headers=headers)


def is_loopback(host: str) -> bool:
    """Whether binding to `host` keeps the endpoint on this machine."""
    return host in LOOPBACK_NAMES
