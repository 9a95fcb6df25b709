"""A browser logs in once with the token; its cookie opens everything, proves nothing else and can be forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.endpoint import Endpoint, open_endpoint

TOKEN = "a token of the test"
SITE = "http://far.example"


@pytest.fixture
async def http(tmp_path: Path, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint,
        endpoint.http(base_url=SITE) as http,
    ):
        yield http


async def login(http: httpx.AsyncClient, token: str) -> httpx.Response:
    return await http.post("/login", data={"token": token})


async def test_a_person_without_a_session_is_sent_to_the_login(http: httpx.AsyncClient) -> None:
    answer = await http.get("/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert (await http.get(answer.headers["location"])).status_code == 200
    assert "Token" in (await http.get("/login")).text
    assert (await http.get("/page/login.css")).status_code == 200
    assert (await http.get("/page/main.js")).status_code == 401
    assert (await http.get("/")).status_code == 401


async def test_the_token_opens_the_page_and_its_routes(http: httpx.AsyncClient) -> None:
    answer = await login(http, TOKEN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in answer.headers["set-cookie"]
    page = await http.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "<html data-login" in page.text
    assert (await http.get("/v1/rounds")).status_code == 200
    assert (await http.post("/v1/control/pause", headers={"Origin": SITE})).status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "ünï", "x" * 5000])
async def test_a_wrong_token_is_refused(http: httpx.AsyncClient, token: str) -> None:
    answer = await login(http, token)
    assert answer.status_code == 401
    assert "not the token" in answer.text
    assert "set-cookie" not in answer.headers


async def test_another_site_cannot_use_the_session(http: httpx.AsyncClient) -> None:
    await login(http, TOKEN)
    answer = await http.post("/v1/control/stop", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403


async def test_a_session_can_be_forgotten(http: httpx.AsyncClient) -> None:
    await login(http, TOKEN)
    assert (await http.post("/logout")).headers["location"] == "/login"
    assert (await http.get("/v1/status")).status_code == 401


async def test_without_a_token_there_is_no_login(endpoint: Endpoint) -> None:
    async with endpoint.http() as http:
        assert (await http.get("/login")).headers["location"] == "/"
        assert (await login(http, "")).status_code == 401
        assert "data-login" not in (await http.get("/")).text
