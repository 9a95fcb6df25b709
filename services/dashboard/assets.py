"""The page's own files, served from memory under a strict content security policy."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from services.api.error_responses import may_answer

FOLDER = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""Nothing is loaded from elsewhere, and no text of a rollout can become a script."""


@cache
def _content(name: str) -> tuple[bytes, str]:
    """A file's bytes and ETag; KeyError when the page has no such file."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
    data = files[name].read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:16]}"'


def html(name: str, status: int = 200, *, shown: bytes = b"", marked: str = "") -> Response:
    """One of the page's documents.

    `shown`: attribute of a hidden element that is to be visible; `marked`: attribute of the root element, which the
    styles and scripts know.
    """
    document = _content(name)[0]
    document = document.replace(shown + b" hidden", shown, 1) if shown else document
    document = document.replace(b"<html", f"<html {marked}".encode(), 1) if marked else document
    return Response(document, status, SECURITY_HEADERS, media_type="text/html")


def document_router(name: str, *, marked: str = "") -> APIRouter:
    """A document at the root."""
    router = APIRouter(tags=["page"])

    @router.get("/", response_class=HTMLResponse, responses={303: {"description": "To the login"}, **may_answer()})
    async def page() -> Response:
        """The page."""
        return html(name, marked=marked)

    return router


def files_router() -> APIRouter:
    """What the documents load."""
    router = APIRouter(tags=["page"])

    @router.get(
        "/page/{name}",
        response_class=Response,
        responses={304: {"description": "The browser holds it"}, **may_answer(404)},
    )
    async def asset(request: Request, name: str) -> Response:
        """A script, a style or the icon."""
        try:
            data, etag = _content(name)
        except KeyError:
            raise HTTPException(404, f"the page has no file {name[:80]!r}") from None
        headers = {**SECURITY_HEADERS, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=TYPES[Path(name).suffix])

    return router
