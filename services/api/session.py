"""The session cookie of a browser that has logged in. It does not contain the token, and the server stores nothing.

    sept_session = EXPIRES.HMAC-SHA256(SHA-256 of the token, "sept session EXPIRES")

It stays valid when the services restart, has the role of the token, and ends with it.
"""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final

COOKIE: Final = "sept_session"
LIFETIME_S = 14 * 86_400
"""A run is watched for days; afterwards the browser has to log in again."""


def make_session(token_digest: str, now_s: float) -> str:
    """The cookie's value for a browser that gave the token with this digest at `now_s` (Unix seconds)."""
    expires = str(int(now_s) + LIFETIME_S)
    return f"{expires}.{_signature(token_digest, expires)}"


def is_session(value: str, token_digest: str, now_s: float) -> bool:
    """Whether `value` was made with the token of this digest and has not expired."""
    expires, _, signature = value.partition(".")
    genuine = hmac.compare_digest(signature.encode(), _signature(token_digest, expires).encode())
    return genuine and expires.isdecimal() and now_s < int(expires)


def session_of(cookie_header: str) -> str:
    """The session in a Cookie header; empty when there is none."""
    try:
        found = SimpleCookie(cookie_header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _signature(token_digest: str, expires: str) -> str:
    return hmac.new(token_digest.encode(), f"sept session {expires}".encode(), hashlib.sha256).hexdigest()
