"""When a proxy of the environment is used, and whose answer an answer is."""

from __future__ import annotations

import socket

import httpx
import pytest

from services.errors import ConfigError
from services.http_client import answered_by_another, may_use_proxy, open_client

PROXIES = [
    {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
    {"ALL_PROXY": "socks5h://127.0.0.1:9", "all_proxy": "socks5h://127.0.0.1:9"},
    {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost,::1,fd00::/8,10.0.0.0/8"},
    {"http_proxy": "proxy://:x:"},
]
HTML = httpx.Response(404, html="<html>default backend</html>")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8400",
        "http://127.9.9.9",
        "http://[::1]:8400",
        "http://localhost:1",
        "http://localhost.:1",
        "http://run.localhost",
        "http://services:8400",
        "http://0.0.0.0:8400",
        f"http://{socket.gethostname()}:8400",
    ],
)
def test_this_machine_is_asked_without_a_proxy(url: str) -> None:
    assert not may_use_proxy(url)


@pytest.mark.parametrize("url", ["http://far.example:8400", "http://192.0.2.1", "http://[2001:db8::1]:8400"])
def test_others_may_be_asked_through_one(url: str) -> None:
    assert may_use_proxy(url)


@pytest.mark.parametrize("environ", PROXIES)
async def test_proxy_variables_do_not_concern_this_machine(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with open_client("http://127.0.0.1:8400", token=None, timeout=1.0) as client:
        assert not client.trust_env


async def test_a_proxy_variable_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy://:x:")
    with pytest.raises(ConfigError, match=r"http://far\.example.*proxy variable") as caught:
        open_client("http://far.example", token="secret", timeout=1.0)
    assert "HTTP_PROXY" in caught.value.hint


async def test_the_token_is_sent() -> None:
    async with open_client("http://127.0.0.1:1", token="secret", timeout=1.0, headers={"X-A": "b"}) as client:
        assert (client.headers["Authorization"], client.headers["X-A"]) == ("Bearer secret", "b")


@pytest.mark.parametrize(
    "response",
    [
        HTML,
        httpx.Response(502, text="Bad Gateway"),
        httpx.Response(404, json={"message": "no Route matched with those values"}),
        httpx.Response(403, html="blocked"),
        httpx.Response(200, html="<form>Log in</form>"),
        httpx.Response(302, headers={"Location": "https://login.example"}),
        httpx.Response(503),
    ],
)
def test_what_lies_in_between_is_recognised(response: httpx.Response) -> None:
    assert str(response.status_code) in answered_by_another(response)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json={}),
        httpx.Response(204),
        httpx.Response(304),
        httpx.Response(206, content=b"bytes", headers={"Content-Type": "application/octet-stream"}),
        httpx.Response(404, json={"error": "no such version", "hint": ""}),
        httpx.Response(401, json={"error": "no token", "hint": "send it"}),
    ],
)
def test_the_services_are_recognised(response: httpx.Response) -> None:
    assert answered_by_another(response) == ""
