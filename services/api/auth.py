"""Authentication of requests: a bearer token, a browser's session, or on loopback this machine's own programs.

It is a layer around the whole app, so that a route added later is closed by default. What a request may do follows from
the role of its token (`services.api.tokens`).
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from services.api.session import is_session, session_of
from services.api.tokens import Holder, Tokens
from services.http_client import HEALTH_PATH
from services.net import hostname_of, is_loopback

LOGIN_PATH = "/login"
OPEN_PATHS = frozenset({HEALTH_PATH, LOGIN_PATH, "/page/login.css", "/page/login.js", "/page/icon.svg"})
"""The login page with its files, and the liveness check, by which the services prove who they are."""
POLICY_VIOLATION = 1008
"""WebSocket close code of RFC 6455."""


class AuthMiddleware:
    """ASGI layer that answers 401 or 403 itself and lets nothing else through.

    With tokens every request must carry one, or the session of a browser that logged in with one, and its role must
    allow the request; a person who opens the page without one is sent to the login. Without tokens (None) the caller
    must bind the app to loopback. Then a web page from elsewhere, open in a browser of this machine, is refused: its
    requests name its own origin, and a host that was made to resolve to 127.0.0.1 is not one of the loopback names.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens | None) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = _token_refusal(headers, self._tokens, scope) if self._tokens else _loopback_refusal(headers)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            await refusal(scope, receive, send)


def _token_refusal(headers: Headers, tokens: Tokens, scope: Scope) -> Response | None:
    holder, by_session = _who(headers, tokens)
    if holder is not None:
        method = scope.get("method", "GET")  # a WebSocket has none
        if holder.role.may(method, scope["path"]):
            return _origin_refusal(headers) if by_session else None
        return _refusal(
            403,
            f"a token of the role {holder.role} may not {method} {scope['path'][:80]}",
            "use a token of another role; docs/security.md says which role may do what",
        )
    if scope["path"] == "/" and "text/html" in headers.get("accept", ""):
        return RedirectResponse(LOGIN_PATH, status_code=303)
    return _refusal(
        401,
        "the request carries no valid token",
        "send the header Authorization: Bearer TOKEN with the value of services.token, or one made by `sept tokens`",
        {"WWW-Authenticate": "Bearer"},
    )


def _who(headers: Headers, tokens: Tokens) -> tuple[Holder | None, bool]:
    """Whose request it is, and whether a session says so."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (holder := tokens.holder_of(given.strip())) is not None:
        return holder, False
    session, now_s = session_of(headers.get("cookie", "")), time.time()
    if not session:
        return None, False
    return next((holder for holder in tokens.holders() if is_session(session, holder.digest, now_s)), None), True


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
