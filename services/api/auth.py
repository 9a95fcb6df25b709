"""Authentication of requests: a bearer token, a browser's session, or on loopback this machine's own programs.

It is a layer around the whole app, so that a route added later is closed by default.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from services.api.session import is_session, is_token, session_of
from services.net import hostname_of, is_loopback

LOGIN_PATH = "/login"
OPEN_PATHS = frozenset({"/healthz", LOGIN_PATH, "/page/login.css", "/page/icon.svg"})
"""The login page with its files, and the liveness check."""
POLICY_VIOLATION = 1008
"""WebSocket close code of RFC 6455."""


class AuthMiddleware:
    """ASGI layer that answers 401 or 403 itself and lets nothing else through.

    With a token every request must carry it, or the session of a browser that logged in with it; a person who opens
    the page without one is sent to the login. Without a token the caller must bind the app to loopback. Then a web page
    from elsewhere, open in a browser of this machine, is refused: its requests name its own origin, and a host that
    was made to resolve to 127.0.0.1 is not one of the loopback names.
    """

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = _token_refusal(headers, self._token, scope) if self._token else _loopback_refusal(headers)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            await refusal(scope, receive, send)


def _token_refusal(headers: Headers, token: str, scope: Scope) -> Response | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(given.strip(), token):
        return None
    if is_session(session_of(headers.get("cookie", "")), token, time.time()):
        return _origin_refusal(headers)
    if scope["path"] == "/" and "text/html" in headers.get("accept", ""):
        return RedirectResponse(LOGIN_PATH, status_code=303)
    return _refusal(
        401,
        "the request carries no valid token",
        "send the header Authorization: Bearer TOKEN with the value of services.token",
        {"WWW-Authenticate": "Bearer"},
    )


def _loopback_refusal(headers: Headers) -> Response | None:
    host = headers.get("host", "")
    if not is_loopback(hostname_of(f"//{host}")):
        return _refusal(
            403, f"host {host[:80]!r} is not this machine's loopback address", "use 127.0.0.1 or set services.token"
        )
    return _origin_refusal(headers)


def _origin_refusal(headers: Headers) -> Response | None:
    """Another site's page can make a browser send a request, but the browser names that site as the origin."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
        return _refusal(
            403, f"origin {origin[:80]!r} may not use this endpoint", "open the page from this endpoint itself"
        )
    return None


def _refusal(status: int, error: str, hint: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": error, "hint": hint}, status_code=status, headers=headers)
