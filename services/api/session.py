"""The session cookie of a browser that has logged in. It does not contain the token, and the server stores nothing.

    sept_session = EXPIRES.HMAC-SHA256(token, "sept session EXPIRES")

It stays valid when the services restart. Another token ends all sessions.
"""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final

COOKIE: Final = "sept_session"
LIFETIME_S = 14 * 86_400
"""A run is watched for days; afterwards the browser has to log in again."""


def is_token(given: str, token: str) -> bool:
    """Compared in constant time, as bytes: compare_digest refuses text beyond ASCII."""
    return hmac.compare_digest(given.encode(), token.encode())


def make_session(token: str, now_s: float) -> str:
    """The cookie's value for a browser that gave the token at `now_s` (Unix seconds)."""
    expires = str(int(now_s) + LIFETIME_S)
    return f"{expires}.{_signature(token, expires)}"


def is_session(value: str, token: str, now_s: float) -> bool:
    """Whether `value` was made with this token and has not expired."""
    expires, _, signature = value.partition(".")
    genuine = hmac.compare_digest(signature.encode(), _signature(token, expires).encode())
    return genuine and expires.isdecimal() and now_s < int(expires)


def session_of(cookie_header: str) -> str:
    """The session in a Cookie header; empty when there is none."""
    try:
        found = SimpleCookie(cookie_header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _signature(token: str, expires: str) -> str:
    return hmac.new(token.encode(), f"sept session {expires}".encode(), hashlib.sha256).hexdigest()
