"""Every route but /healthz and the login is closed: to all who lack the token, without one to other sites and hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from tests.support.endpoint import Endpoint, open_endpoint

TOKEN = "a token of the test"


@pytest.fixture
async def guarded(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint:
        yield endpoint


def routes(endpoint: Endpoint) -> list[tuple[str, str]]:
    paths = endpoint.app.openapi()["paths"]
    found = [(method, path) for path, operations in paths.items() for method in operations]
    return [*found, ("get", "/openapi.json"), ("get", "/no/such/route")]


async def test_every_route_but_healthz_and_the_login_wants_the_token(guarded: Endpoint) -> None:
    async with guarded.http(base_url="http://far.example") as http:
        answers = {
            (method, path): (await http.request(method, path.replace("{version}", "0"))).status_code
            for method, path in routes(guarded)
        }
    assert answers.pop(("get", "/healthz")) == 200
    assert (answers.pop(("get", "/login")), answers.pop(("post", "/login"))) == (200, 401)
    assert len(answers) > 10
    assert set(answers.values()) == {401}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
async def test_a_wrong_token_is_refused(guarded: Endpoint, header: str) -> None:
    async with guarded.http() as http:
        answer = await http.get("/v1/status", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


async def test_the_right_token_is_let_in_from_anywhere(guarded: Endpoint) -> None:
    async with guarded.http(token=TOKEN, base_url="http://far.example") as http:
        assert (await http.get("/v1/status")).status_code == 200


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8400", "http://localhost:1", "http://[::1]:8400"])
async def test_without_a_token_this_machine_is_let_in(endpoint: Endpoint, base_url: str) -> None:
    async with endpoint.http(base_url=base_url) as http:
        assert (await http.get("/v1/status")).status_code == 200
        own_page = {"Origin": base_url}
        assert (await http.post("/v1/control/pause", headers=own_page)).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "evil.example:8400"])
async def test_without_a_token_a_name_that_was_made_to_resolve_here_is_refused(endpoint: Endpoint, host: str) -> None:
    async with endpoint.http() as http:
        assert (await http.get("/v1/status", headers={"Host": host})).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
async def test_without_a_token_the_pages_of_other_sites_are_refused(endpoint: Endpoint, origin: str) -> None:
    async with endpoint.http() as http:
        assert (await http.post("/v1/control/stop", headers={"Origin": origin})).status_code == 403


def test_every_route_documents_the_guard_s_refusals(endpoint: Endpoint) -> None:
    for path, operations in endpoint.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if path not in {"/healthz", "/login"}:
                assert {"401", "403"} <= operation["responses"].keys(), (method, path)


def test_all_routes_are_in_the_documentation(endpoint: Endpoint) -> None:
    paths = {route.path_format for route in endpoint.app.routes if isinstance(route, APIRoute)}
    assert paths == set(endpoint.app.openapi()["paths"])
