"""The client of a run's services: what it asks, whom it believes, and what it makes of other answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from deploy.endpoints import Endpoints
from deploy.operate.client import RunClient
from services.errors import ContractError, SeptError, UnavailableError
from services.run_folder import RunFolder, RunIdentity
from tests.support.heartbeats import status_of

WHERE = Endpoints(redis_url="redis://:secret@h:1", services_url="http://h:2", token="hush")


def client(answer: Callable[[httpx.Request], httpx.Response]) -> RunClient:
    return RunClient(WHERE, transport=httpx.MockTransport(answer))


def proof_of(identity: RunIdentity, request: httpx.Request) -> dict[str, str]:
    """What services with this identity answer; nothing where they are not asked for a proof."""
    challenge = request.url.params.get("challenge")
    return {"run_id": identity.run_id, "proof": identity.proof(challenge)} if challenge else {}


async def test_status_is_asked_with_the_token() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer hush"
        return httpx.Response(200, text=status_of(round=3).model_dump_json())

    async with client(answer) as run:
        assert (await run.status()).round == 3


async def test_requests_go_to_their_routes() -> None:
    asked: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        return httpx.Response(200, json={"folder": "exports/v000008"})

    async with client(answer) as run:
        await run.pause()
        await run.resume()
        await run.stop()
        await run.scale(3)
        await run.checkpoint()
        await run.roll_back(8)
        assert await run.export(8) == "exports/v000008"
    assert asked == [
        ("/v1/control/pause", b""),
        ("/v1/control/resume", b""),
        ("/v1/control/stop", b""),
        ("/v1/control/generators", b'{"generators_target":3}'),
        ("/v1/control/checkpoint", b""),
        ("/v1/control/rollback", b'{"weight_version":8}'),
        ("/v1/control/export", b'{"weight_version":8}'),
    ]


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        (httpx.Response(401, json={"error": "no token", "hint": ""}), UnavailableError, "refuse the token"),
        (httpx.Response(503, json={"error": "Redis is away"}), UnavailableError, "^Redis is away"),
        (
            httpx.Response(404, html="<html>backend</html>"),
            UnavailableError,
            "something else: status 404 with text/html",
        ),
        (httpx.Response(200, text="{}"), ContractError, "cannot read"),
    ],
)
async def test_what_cannot_be_used_is_explained(response: httpx.Response, error: type[SeptError], says: str) -> None:
    async with client(lambda request: response) as run:
        with pytest.raises(error, match=says):
            await run.status()


async def test_services_that_do_not_answer_are_named() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with client(answer) as run:
        with pytest.raises(UnavailableError, match="http://h:2 do not answer"):
            await run.status()


async def test_a_name_alone_proves_nothing(tmp_path: Path) -> None:
    """Who knows the run's name and not its key is another; an earlier proof is none either."""
    folder = RunFolder(tmp_path).create()
    for answer in (
        lambda request: proof_of(RunIdentity(folder.run_id, b"a guess"), request),
        lambda request: {"run_id": folder.run_id, "proof": folder.run_identity.proof("0" * 32)},
    ):
        transport = httpx.MockTransport(lambda request, answer=answer: httpx.Response(200, json=answer(request)))
        async with RunClient(WHERE, of_run=folder, transport=transport) as run:
            with pytest.raises(UnavailableError, match=r"no run is active in .* only claims to be it"):
                await run.stop()


async def test_another_run_at_the_address_is_asked_for_nothing_but_its_name(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path).create(), []

    def answer(request: httpx.Request) -> httpx.Response:
        assert "Authorization" not in request.headers
        asked.append((request.method, request.url.path))
        return httpx.Response(200, json={"status": "ok", **proof_of(RunIdentity("r-1", b"its key"), request)})

    async with RunClient(WHERE, of_run=folder, transport=httpx.MockTransport(answer)) as run:
        for request in (run.stop, run.pause, run.status, lambda: run.scale(0)):
            with pytest.raises(UnavailableError, match=r"no run is active in .* are those of run r-1, not of"):
                await request()
    assert set(asked) == {("GET", "/healthz")}


async def test_its_own_run_is_asked_once_for_its_name(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path).create(), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.headers.get("Authorization")))
        return httpx.Response(200, json=proof_of(folder.run_identity, request))

    async with RunClient(WHERE, of_run=folder, transport=httpx.MockTransport(answer)) as run:
        await run.pause()
        await run.stop()
    token = f"Bearer {WHERE.token}"
    assert asked == [("/healthz", None), ("/v1/control/pause", token), ("/v1/control/stop", token)]


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(401, json={"error": "no token", "hint": ""}),  # another run with another token
        httpx.Response(404, html="<html>somebody's web server</html>"),
        httpx.Response(200, json=["no status"]),
        httpx.Response(200, json={"status": "ok"}),  # services of an earlier release
    ],
)
async def test_whoever_else_listens_there_now_is_not_the_run(tmp_path: Path, response: httpx.Response) -> None:
    folder = RunFolder(tmp_path).create()
    transport = httpx.MockTransport(lambda request: response)
    async with RunClient(WHERE, of_run=folder, transport=transport) as run:
        with pytest.raises(UnavailableError, match="no run is active in"):
            await run.stop()
