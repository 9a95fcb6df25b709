"""Login and logout of a browser: it sends the token once by POST and gets a session cookie.

A token for watching shows everything and changes nothing. Guessing is slowed down, by address.
"""

from __future__ import annotations

import time
from math import ceil
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from services.api.auth import LOGIN_PATH
from services.api.error_responses import may_answer
from services.api.limits import Throttle
from services.api.session import COOKIE, LIFETIME_S, make_session
from services.api.tokens import LOGOUT_PATH, Holder, Role, Tokens
from services.dashboard.assets import html

TRIES = 5
SECONDS_PER_TRY = 2.0
"""Wrong tokens that one address may send at once, and how long it then waits for each more."""


def login_router(tokens: Tokens | None) -> APIRouter:
    """/login and /logout; without tokens there is nothing to log in to."""
    router = APIRouter(tags=["page"])
    guesses = Throttle(TRIES, SECONDS_PER_TRY)

    @router.get(LOGIN_PATH, response_class=HTMLResponse, responses={303: {"description": "Nothing to log in to"}})
    async def show_login() -> Response:
        """The form that asks for the token."""
        return RedirectResponse("/", status_code=303) if tokens is None else html("login.html")

    @router.post(
        LOGIN_PATH,
        status_code=303,
        response_class=RedirectResponse,
        responses={**may_answer(413, 429), 401: {"content": {"text/html": {}}, "description": "Not the token"}},
    )
    async def login(request: Request) -> Response:
        """Exchange a token for a session of its role."""
        address = request.client.host if request.client else ""
        if (wait_s := guesses.wait_s(address)) > 0:
            raise HTTPException(429, "too many wrong tokens", headers={"Retry-After": str(ceil(wait_s))})
        holder = await _holder(request, tokens)
        if holder is None:
            guesses.count(address)
            return html("login.html", status=401, shown=b'role="alert"')
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE,
            make_session(holder.digest, time.time()),
            max_age=LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post(LOGOUT_PATH, status_code=303, response_class=RedirectResponse, responses=may_answer())
    async def logout() -> Response:
        """Forget the session in this browser."""
        answer = RedirectResponse(LOGIN_PATH, status_code=303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


async def _holder(request: Request, tokens: Tokens | None) -> Holder | None:
    """Who logs in; None when the form has no valid token, or one for generators, which have nothing to see."""
    given = parse_qs((await request.body()).decode(errors="replace")).get("token", [""])[0].strip()
    holder = tokens.holder_of(given) if tokens is not None else None
    return holder if holder is not None and holder.role is not Role.GENERATOR else None
