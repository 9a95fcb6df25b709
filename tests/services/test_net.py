"""Which addresses are this machine's own."""

from __future__ import annotations

import pytest

from services.net import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_these_stay_on_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "192.168.0.1", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_these_do_not(host: str) -> None:
    assert not is_loopback(host)
