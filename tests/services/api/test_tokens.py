"""Tokens with roles: what each may do, and that one can be made and revoked while the services run."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from deploy.operate.token_commands import add_token, revoke_given, revoke_named
from services.api import tokens as tokens_module
from services.api.auth import AuthMiddleware
from services.api.tokens import Role, TokenFile, Tokens
from services.errors import ConfigError
from services.run_folder import RunFolder
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.weight_samples import first_version

STEER, GENERATOR, WATCH = "the one that steers", "the one for generators", "the one for watching"
GENERATORS_ROUTES = {"/readyz", "/v1/status", "/v1/weights/latest", "/v1/weights/{version}"}
GENERATORS_ROUTES |= {"/v1/weights/{version}/files/{name}"}
OPEN = {("get", "/healthz"), ("get", "/login"), ("post", "/login")}


@pytest.fixture
async def guarded(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    role_tokens = {Role.GENERATOR: GENERATOR, Role.WATCH: WATCH}
    async with open_endpoint(tmp_path / "run", redis_url, token=STEER, role_tokens=role_tokens) as endpoint:
        endpoint.store.publish(0, first_version())
        yield endpoint


@pytest.fixture
def looked_at_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "LOOK_EVERY_S", 0.0)


async def status_of(endpoint: Endpoint, token: str, method: str = "get", path: str = "/v1/status") -> int:
    async with endpoint.http(token=token, base_url="http://far.example") as http:
        return (await http.request(method, path)).status_code


async def let_through(endpoint: Endpoint, token: str) -> set[tuple[str, str]]:
    """The routes that the guard lets this token to; behind it is nothing that could wait or change."""
    paths = endpoint.app.openapi()["paths"]
    routes = {(method, path) for path, operations in paths.items() for method in operations}
    routes |= {("get", "/openapi.json"), ("get", "/no/such/route"), ("post", "/v1/weights/0"), ("delete", "/v1/status")}
    tokens = Tokens({Role.STEER: STEER, Role.GENERATOR: GENERATOR, Role.WATCH: WATCH})
    guard = AuthMiddleware(Response("let through"), tokens=tokens)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://far", headers=headers) as http:
        return {(method, path) for method, path in routes if (await http.request(method, path)).status_code == 200}


async def test_a_generator_pulls_weights_reads_the_status_and_nothing_else(guarded: Endpoint) -> None:
    assert await let_through(guarded, GENERATOR) == {("get", path) for path in GENERATORS_ROUTES} | OPEN


async def test_who_watches_reads_everything_but_the_weights_and_changes_nothing(guarded: Endpoint) -> None:
    everything = await let_through(guarded, STEER)
    reading = {(method, path) for method, path in everything if method == "get" or path == "/logout"}
    assert {("post", "/v1/control/stop"), ("delete", "/v1/status"), ("get", "/openapi.json")} <= everything
    weights = {(method, path) for method, path in reading if path.startswith("/v1/weights/")}
    assert weights and await let_through(guarded, WATCH) == reading - weights | OPEN


async def test_the_services_answer_by_role(guarded: Endpoint) -> None:
    for token, statuses in ((STEER, [200, 200, 200]), (GENERATOR, [200, 403, 403]), (WATCH, [403, 200, 403])):
        asked = [("get", "/v1/weights/0"), ("get", "/v1/rounds"), ("post", "/v1/control/resume")]
        assert [await status_of(guarded, token, *one) for one in asked] == statuses


async def test_a_session_has_the_role_of_its_token(guarded: Endpoint) -> None:
    async with guarded.http(base_url="http://far.example") as http:
        assert (await http.post("/login", data={"token": GENERATOR})).status_code == 401
        assert (await http.post("/login", data={"token": WATCH})).status_code == 303
        assert (await http.get("/v1/rounds")).status_code == 200
        assert (await http.post("/v1/control/stop")).status_code == 403


@pytest.mark.usefixtures("looked_at_always")
async def test_a_token_is_made_and_revoked_while_the_services_run(guarded: Endpoint) -> None:
    token = add_token(guarded.folder, "rack-7", Role.GENERATOR)
    assert await status_of(guarded, token) == 200
    assert await status_of(guarded, token, "post", "/v1/control/stop") == 403
    revoke_named(guarded.folder, "rack-7")
    assert await status_of(guarded, token) == 401


@pytest.mark.usefixtures("looked_at_always")
async def test_a_token_of_the_settings_is_revoked_with_its_sessions_and_no_other(guarded: Endpoint) -> None:
    async with guarded.http(base_url="http://far.example") as http:
        await http.post("/login", data={"token": STEER})
        assert (await http.get("/v1/rounds")).status_code == 200
        revoke_given(guarded.folder, STEER)
        assert (await http.get("/v1/rounds")).status_code == 401
    assert await status_of(guarded, STEER) == 401
    assert await status_of(guarded, GENERATOR) == 200


@pytest.mark.usefixtures("looked_at_always")
def test_a_file_that_was_damaged_changes_nothing_while_running_and_stops_a_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    tokens = Tokens({Role.STEER: STEER}, folder.tokens)
    token = add_token(folder, "a", Role.WATCH)
    revoke_given(folder, STEER)
    assert tokens.holder_of(token) is not None
    folder.tokens.write_text('{"tokens": [')
    assert tokens.holder_of(token) is not None
    assert tokens.holder_of(STEER) is None
    with pytest.raises(ConfigError, match=r"tokens\.json cannot be read"):
        Tokens({}, folder.tokens)


def test_the_file_holds_no_token_and_is_its_owners(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    token = add_token(folder, "a", Role.STEER)
    assert token not in folder.tokens.read_text()
    assert stat.S_IMODE(folder.tokens.stat().st_mode) == 0o600
    assert [(held.name, held.role) for held in TokenFile.read(folder.tokens).tokens] == [("a", Role.STEER)]
    with pytest.raises(ConfigError, match="a token named 'a' already"):
        add_token(folder, "a", Role.WATCH)
    with pytest.raises(ConfigError, match="no token named 'b'"):
        revoke_named(folder, "b")
