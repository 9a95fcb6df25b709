"""Every route but /healthz and the login is closed: to all who lack the token, without one to other sites and hosts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from services.api.auth import AuthMiddleware
from services.api.session import COOKIE, LIFETIME_S, make_session
from services.api.tokens import Role, Tokens, digest_of
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


async def answers(kind: str, token: str | None, headers: dict[str, str], path: str = "/v1/live") -> list[str]:
    """What a connection of this kind gets; "app" when the layer lets it through, with all that it came with."""
    said: list[str] = []
    scope = {
        "type": kind,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> Message:
        return {"type": f"{kind}.connect"}

    async def send(message: Message) -> None:
        said.append(f"{message['type']} {message.get('code', message.get('status', ''))}".strip())

    async def app(given: Scope, receive_on: Receive, send_on: Send) -> None:
        assert (given, receive_on, send_on) == (scope, receive, send)
        said.append("app")

    tokens = None if token is None else Tokens({Role.STEER: token})
    await AuthMiddleware(app, tokens=tokens)(scope, receive, send)
    return said


LOCAL = {"host": "127.0.0.1:8400"}


@pytest.mark.parametrize(
    ("token", "headers", "open_to_it"),
    [
        (TOKEN, LOCAL, False),
        (TOKEN, {**LOCAL, "authorization": "Bearer wrong"}, False),
        (TOKEN, {"host": "far.example", "authorization": f"Bearer {TOKEN}"}, True),
        (TOKEN, {**LOCAL, "cookie": f"{COOKIE}={make_session(digest_of(TOKEN), time.time())}"}, True),
        (TOKEN, {**LOCAL, "cookie": f"{COOKIE}={make_session(digest_of(TOKEN), time.time() - LIFETIME_S)}"}, False),
        (
            TOKEN,
            {**LOCAL, "cookie": f"{COOKIE}={make_session(digest_of(TOKEN), time.time())}", "origin": "http://evil"},
            False,
        ),
        (None, LOCAL, True),
        (None, {"host": "evil.example"}, False),
        (None, {}, False),
        (None, {**LOCAL, "origin": "http://evil.example"}, False),
        (None, {**LOCAL, "origin": "http://127.0.0.1:8400"}, True),
    ],
)
async def test_websockets_are_closed_by_default_too(
    token: str | None, headers: dict[str, str], open_to_it: bool
) -> None:
    assert await answers("websocket", token, headers) == (["app"] if open_to_it else ["websocket.close 1008"])
    (first, *_) = await answers("http", token, headers)
    assert (first == "app") is open_to_it


async def test_the_app_itself_starts_and_open_paths_answer_without_a_token() -> None:
    for kind, path in [("lifespan", ""), ("http", "/healthz"), ("http", "/login"), ("websocket", "/healthz")]:
        assert await answers(kind, TOKEN, {}, path) == ["app"]


@pytest.mark.parametrize(
    ("path", "accept", "first"),
    [
        ("/", "text/html,*/*", "http.response.start 303"),
        ("/", "application/json", "http.response.start 401"),
        ("/v1/status", "text/html", "http.response.start 401"),
        ("/", None, "http.response.start 401"),
    ],
)
async def test_only_a_person_who_opens_the_page_is_sent_to_the_login(path: str, accept: str | None, first: str) -> None:
    accepting = {} if accept is None else {"accept": accept}
    assert (await answers("http", TOKEN, {**LOCAL, **accepting}, path))[0] == first


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_of_the_header_is_read_in_any_case_and_with_spaces(scheme: str) -> None:
    assert await answers("http", TOKEN, {"authorization": f"{scheme}  {TOKEN} "}) == ["app"]


async def test_a_refusal_says_what_to_do(guarded: Endpoint, endpoint: Endpoint) -> None:
    async with guarded.http() as http:
        assert (await http.get("/v1/status")).json() == {
            "error": "the request carries no valid token",
            "hint": "send the header Authorization: Bearer TOKEN with the value of services.token, or one made by "
            "`sept tokens`",
        }
    async with endpoint.http() as http:
        answer = await http.get("/v1/status", headers={"Host": "evil.example" * 20})
        assert answer.json() == {
            "error": f"host {('evil.example' * 20)[:80]!r} is not this machine's loopback address",
            "hint": "use 127.0.0.1 or set services.token",
        }
        answer = await http.get("/v1/status", headers={"Origin": "x" * 100})
        assert answer.json()["error"] == f"origin {'x' * 80!r} may not use this endpoint"
        answer = await http.get("/v1/status", headers={"Origin": "http://evil.example"})
        assert answer.json() == {
            "error": "origin 'http://evil.example' may not use this endpoint",
            "hint": "open the page from this endpoint itself",
        }
