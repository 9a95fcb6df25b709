"""Login and logout of a browser: it sends the token once by POST and gets a session cookie."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from services.api.auth import LOGIN_PATH
from services.api.error_responses import may_answer
from services.api.session import COOKIE, LIFETIME_S, is_token, make_session
from services.dashboard.assets import html

MAX_FORM_BYTES = 4096


def login_router(token: str | None) -> APIRouter:
    """/login and /logout; without a token there is nothing to log in to."""
    router = APIRouter(tags=["page"])

    @router.get(LOGIN_PATH, response_class=HTMLResponse, responses={303: {"description": "Nothing to log in to"}})
    async def show_login() -> Response:
        """The form that asks for the token."""
        return RedirectResponse("/", status_code=303) if token is None else html("login.html")

    @router.post(
        LOGIN_PATH,
        status_code=303,
        response_class=RedirectResponse,
        responses={**may_answer(413), 401: {"content": {"text/html": {}}, "description": "Not the token"}},
    )
    async def login(request: Request) -> Response:
        """Exchange the token for a session."""
        if token is None or not is_token(await _given_token(request), token):
            return html("login.html", status=401, shown=b'role="alert"')
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE,
            make_session(token, time.time()),
            max_age=LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout", status_code=303, response_class=RedirectResponse, responses=may_answer())
    async def logout() -> Response:
        """Forget the session in this browser."""
        answer = RedirectResponse(LOGIN_PATH, status_code=303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


async def _given_token(request: Request) -> str:
    """The form's token; empty when the form is not one or too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return ""
    return parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()
