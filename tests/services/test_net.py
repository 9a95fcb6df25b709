"""Which addresses are this machine's own, how URLs are read and made, and what a listening socket is."""

from __future__ import annotations

import asyncio
import socket

import pytest

from services.errors import UnavailableError
from services.net import (
    LOOPBACK,
    free_port,
    hostname_of,
    is_loopback,
    listen,
    listener_url,
    port_of,
    reachable_url,
    redis_address,
    split_address,
    why_not_free,
)

SETTING = "services.port"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_these_stay_on_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "192.168.0.1", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_these_do_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    with listen(LOOPBACK, 0, setting=SETTING) as listener:
        port = listener.getsockname()[1]
        assert why_not_free(LOOPBACK, port) == "Address already in use"
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}") as raised:
            listen(LOOPBACK, port, setting=SETTING)
    assert SETTING in raised.value.hint
    assert why_not_free(LOOPBACK, port) == ""


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UnavailableError, match="cannot listen on 192"):
        listen("192.0.2.1", 0, setting=SETTING)
    assert why_not_free("192.0.2.1", 0)


async def test_small_answers_leave_at_once() -> None:
    """asyncio turns Nagle's algorithm off only where the listening socket names its protocol."""
    delays_off: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        delays_off.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen(LOOPBACK, 0, setting=SETTING) as listener:
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await asyncio.wait_for(delays_off, 10) != 0
            writer.close()


def test_a_free_port_can_be_had() -> None:
    with listen(LOOPBACK, free_port(), setting=SETTING) as listener:
        assert listener_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8400"),
        ("0.0.0.0", "http://127.0.0.1:8400"),  # noqa: S104
        ("::", "http://[::1]:8400"),
        ("::1", "http://[::1]:8400"),
        ("far.example", "http://far.example:8400"),
    ],
)
def test_a_listener_is_reached_from_this_machine(host: str, url: str) -> None:
    assert reachable_url(host, 8400) == url


def test_urls_are_taken_apart() -> None:
    assert (hostname_of("http://[::1]:8400/x"), port_of("http://[::1]:8400/x")) == ("::1", 8400)
    assert (hostname_of("//far.example:1"), port_of("http://far.example")) == ("far.example", None)
    assert (hostname_of("//[::1"), hostname_of("")) == ("", "")
    assert split_address("::1:8400") == ("::1", 8400)


def test_a_redis_address_for_messages_has_no_secret() -> None:
    assert redis_address("redis://user:pw@host:7000/2") == "host:7000/2"
    assert redis_address("rediss://host") == "host:6379"
    assert redis_address("unix:///run/redis.sock") == "/run/redis.sock"
