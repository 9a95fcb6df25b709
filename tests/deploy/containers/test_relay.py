"""The relay's nginx.conf under a real nginx: a file is fetched once, whoever asks, and never read without the token."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.weight_fanout import NGINX, relay_config
from deploy.operate.token_commands import revoke_given
from services.contracts import WeightManifest
from services.net import free_port
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from tests.support.endpoint import Endpoint, open_endpoint, served
from tests.support.mirrors import advanced
from tests.support.weight_samples import bits, first_version, next_version

TOKEN = "the-right-one"
PULLERS = 20
PATIENCE_S = 20.0

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")


class Counted:
    """Notes the path of every request that reaches the endpoint."""

    def __init__(self, app: ASGIApp, *, seen: list[str]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._seen.append(scope["path"])
        await self._app(scope, receive, send)


@dataclass
class Relayed:
    """An endpoint with a token, and the relay before it."""

    endpoint: Endpoint
    url: str
    """The relay's."""
    seen: list[str]

    def client(self, token: str | None = TOKEN) -> WeightClient:
        return WeightClient(self.url, token, deadline_s=PATIENCE_S)

    def http(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False)

    def files_fetched(self) -> list[str]:
        return [path for path in self.seen if "/files/" in path]


@pytest.fixture
async def relayed(tmp_path: Path, redis_url: str) -> AsyncIterator[Relayed]:
    seen: list[str] = []
    async with open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint:
        endpoint.app.add_middleware(Counted, seen=seen)
        async with served(endpoint.app) as upstream, relaying(tmp_path, int(upstream.rpartition(":")[2])) as url:
            yield Relayed(endpoint, url, seen)


@asynccontextmanager
async def relaying(folder: Path, upstream: int) -> AsyncIterator[str]:
    listen = free_port()
    (folder / "relay.conf").write_text(relay_config(upstream, listen, folder))
    (folder / "cache").mkdir()
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-c", str(folder / "relay.conf")]
    nginx = await asyncio.create_subprocess_exec(*command, "-g", f"daemon off; user {getpass.getuser()};")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await answers(listen):
                assert nginx.returncode is None
        yield f"http://127.0.0.1:{listen}"
    finally:
        nginx.terminate()
        await asyncio.wait_for(nginx.wait(), PATIENCE_S)


async def answers(port: int) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
    except httpx.TransportError:
        return False


def publish(relayed: Relayed) -> WeightManifest:
    """Versions 0 and 1; the newest."""
    relayed.endpoint.store.publish(0, first_version())
    return relayed.endpoint.store.publish(1, next_version(first_version(), 1))


def address(manifest: WeightManifest) -> str:
    (entry,) = manifest.files
    return f"/v1/weights/{manifest.weight_version}/files/{entry.name}?digest={entry.digest}"


async def test_many_pullers_cost_one_fetch_of_each_file(relayed: Relayed, tmp_path: Path) -> None:
    manifest = publish(relayed)

    async def pull(number: int) -> None:
        async with relayed.client() as client:
            mirror = WeightMirror(tmp_path / f"mirror-{number}", client)
            newest = await client.latest(None, None, 0)
            assert newest == manifest
            update = await advanced(mirror, newest)
            mirror.close()
            assert bits(update.tensors) == bits(next_version(first_version(), 1))

    await asyncio.gather(*(pull(number) for number in range(PULLERS)))
    assert sorted(relayed.files_fetched()) == [
        "/v1/weights/0/files/model.safetensors",
        "/v1/weights/1/files/delta.bin",
    ]


async def test_what_the_relay_holds_is_read_with_the_token_only(relayed: Relayed) -> None:
    at = address(publish(relayed))
    authorised = {"Authorization": f"Bearer {TOKEN}"}
    async with relayed.http(**authorised) as http:
        assert [(await http.get(at)).headers["x-relay"] for _ in range(2)] == ["MISS", "HIT"]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Cookie": "sept=x"}):
        async with relayed.http(**headers) as http:
            assert (await http.get(at)).status_code == 401, headers
            assert (await http.get("/v1/weights/latest")).status_code == 401, headers


async def test_a_token_that_is_revoked_reads_nothing_more_from_the_relay(relayed: Relayed) -> None:
    at, authorised = address(publish(relayed)), {"Authorization": f"Bearer {TOKEN}"}
    async with relayed.http(**authorised) as http:
        assert (await http.get(at)).status_code == 200
        revoke_given(relayed.endpoint.folder, TOKEN)
        async with asyncio.timeout(PATIENCE_S):
            while (await http.get(at)).status_code != 401:
                pass


async def test_a_body_is_not_read_before_the_token_is_accepted(relayed: Relayed) -> None:
    async with relayed.http(Authorization="Bearer wrong") as http:
        answer = await http.post("/v1/weights/0", content=b"x" * 4000)
        assert answer.status_code == 401
        assert (await http.post("/v1/control/stop", content=b"x" * 100_000)).status_code == 413


async def test_without_a_token_nothing_but_health_reaches_the_endpoint(relayed: Relayed) -> None:
    """An endpoint without a token trusts loopback, which is where the relay may stand."""
    before = len(relayed.seen)
    async with relayed.http() as http:
        for path in ("/", "/v1/status", "/v1/weights/latest", "/login", "/healthzz"):
            assert (await http.get(path)).status_code == 401
        assert (await http.get("/healthz")).status_code == 200
    assert relayed.seen[before:] == ["/healthz"]


async def test_a_long_poll_passes_through_and_is_woken(relayed: Relayed) -> None:
    held = relayed.endpoint.store.publish(0, first_version())
    async with relayed.client() as client:
        waiting = asyncio.create_task(client.latest(0, held.digest, 30))
        manifest = await asyncio.to_thread(publish, relayed)
        relayed.endpoint.app.state.notifier.notify()
        assert await asyncio.wait_for(waiting, PATIENCE_S) == manifest


async def test_a_download_that_broke_off_goes_on(relayed: Relayed, tmp_path: Path) -> None:
    manifest = relayed.endpoint.store.publish(0, first_version())
    (entry,) = manifest.files
    content = relayed.endpoint.store.file_path(0, entry.name).read_bytes()
    (tmp_path / f".partial-{entry.digest}").write_bytes(content[:700])
    async with relayed.client() as client:
        assert (await client.fetch(0, entry, tmp_path / "snapshot")).read_bytes() == content
    async with relayed.http(Authorization=f"Bearer {TOKEN}") as http:
        part = await http.get(address(manifest), headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])


async def test_an_address_without_a_digest_is_asked_for_again(relayed: Relayed) -> None:
    at = address(publish(relayed)).partition("?")[0]
    async with relayed.http(Authorization=f"Bearer {TOKEN}") as http:
        for _ in range(2):
            assert (await http.get(at)).status_code == 200
    assert len(relayed.files_fetched()) == 2
