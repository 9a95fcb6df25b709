"""The session cookie: made of the token and an expiry, good for nothing else, found among other cookies."""

from __future__ import annotations

import pytest

from services.api.session import COOKIE, LIFETIME_S, is_session, make_session, session_of

TOKEN = "a token of the test"


def test_a_session_expires_and_belongs_to_its_token() -> None:
    value = make_session(TOKEN, 1000.0)
    assert is_session(value, TOKEN, 1000.0 + LIFETIME_S - 1)
    assert not is_session(value, TOKEN, 1000.0 + LIFETIME_S)
    assert not is_session(value, "another token", 1000.0)


def test_a_session_s_expiry_cannot_be_put_off() -> None:
    expires, _, signature = make_session(TOKEN, 1000.0).partition(".")
    later = str(int(expires) + LIFETIME_S)
    assert is_session(f"{expires}.{signature}", TOKEN, 1000.0)
    assert not is_session(f"{later}.{signature}", TOKEN, 1000.0)


@pytest.mark.parametrize("value", ["", ".", "9999999999.", "9999999999.00", "x.y", "9999999999.ü"])
def test_a_made_up_session_is_none(value: str) -> None:
    assert not is_session(value, TOKEN, 0.0)


@pytest.mark.parametrize(
    ("header", "value"),
    [(f"a=b; {COOKIE}=1.2; c=d", "1.2"), ("", ""), ("a=b", ""), ("\x00=;;;=", ""), (f'{COOKIE}="1.2"', "1.2")],
)
def test_the_session_is_found_among_cookies(header: str, value: str) -> None:
    assert session_of(header) == value
