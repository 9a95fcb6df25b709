"""The generators of a host fetch a large file once, also when one of them dies over it."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from services.contracts import FileEntry, FileKind
from services.tensors import digest_bytes
from services.weights import host_downloads
from services.weights.client import WeightClient
from services.weights.host_downloads import HostDownloads
from services.weights.mirror import WeightMirror
from tests.support.endpoint import BASE_URL, Endpoint
from tests.support.mirrors import advanced
from tests.support.weight_samples import bits, publish_versions

CONTENT = os.urandom(3 << 20)
ENTRY = FileEntry(name="delta.bin", kind=FileKind.DELTA, size_bytes=len(CONTENT), digest=digest_bytes(CONTENT))


class Line:
    """An endpoint that serves the content and counts how often."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self._content = content
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return httpx.Response(200, stream=httpx.ByteStream(self._content))

    def client(self) -> WeightClient:
        return WeightClient("http://far", deadline_s=5, transport=httpx.MockTransport(self))


async def test_five_generators_make_one_request_and_share_the_pages(tmp_path: Path) -> None:
    line = Line()
    async with line.client() as client:
        host = [HostDownloads(tmp_path / "host", client) for _ in range(5)]
        paths = await asyncio.gather(*(each.fetch(1, ENTRY, tmp_path / f"{at}") for at, each in enumerate(host)))
    assert line.requests == 1
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert len({path.stat().st_ino for path in paths}) == 1


async def test_small_files_go_their_own_way(tmp_path: Path) -> None:
    line = Line(CONTENT[:100])
    entry = ENTRY.model_copy(update={"size_bytes": 100, "digest": digest_bytes(CONTENT[:100])})
    async with line.client() as client:
        for at in range(2):
            await HostDownloads(tmp_path / "host", client).fetch(1, entry, tmp_path / f"{at}")
    assert line.requests == 2
    assert not (tmp_path / "host").exists()


async def test_who_waits_goes_on_when_the_one_that_fetched_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_downloads, "LOOK_S", 0.0)
    line = Line()
    (tmp_path / "host").mkdir()
    with (tmp_path / "host" / f"{ENTRY.digest[:2]}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with line.client() as client:
            waiting = asyncio.create_task(HostDownloads(tmp_path / "host", client).fetch(1, ENTRY, tmp_path / "mine"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert line.requests == 0
            held.close()  # as the kernel does for a process that died
            assert (await waiting).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(CONTENT[:-1]), lambda path: path.write_bytes(bytes(len(CONTENT)))],
    ids=["short", "other bytes"],
)
async def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    line = Line()
    async with line.client() as client:
        host = HostDownloads(tmp_path / "host", client)
        await host.fetch(1, ENTRY, tmp_path / "first")
        damage(tmp_path / "host" / ENTRY.digest)
        assert (await host.fetch(1, ENTRY, tmp_path / "second")).read_bytes() == CONTENT
    assert line.requests == 2


async def test_what_nobody_asks_for_any_more_is_deleted_with_a_later_download(tmp_path: Path) -> None:
    other = os.urandom(2 << 20)
    entry = ENTRY.model_copy(update={"size_bytes": len(other), "digest": digest_bytes(other)})
    folder = tmp_path / "host"
    async with Line().client() as first, Line(other).client() as second:
        await HostDownloads(folder, first).fetch(1, ENTRY, tmp_path / "first")
        os.utime(folder / ENTRY.digest, (0, 0))
        await HostDownloads(folder, second).fetch(2, entry, tmp_path / "second")
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {entry.digest}
    assert (tmp_path / "first").read_bytes() == CONTENT


async def test_mirrors_of_one_host_hold_the_same_version_by_one_download(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_downloads, "SHARED_BYTES", 0)
    history = publish_versions(endpoint.store, 3)
    asked: list[str] = []

    async def note(request: httpx.Request) -> None:
        asked.append(request.url.path)

    async with WeightClient(BASE_URL, deadline_s=5, transport=httpx.ASGITransport(endpoint.app)) as client:
        client._http.event_hooks["request"] = [note]
        host = HostDownloads(tmp_path / "host", client)
        mirrors = [WeightMirror(tmp_path / f"mirror-{at}", client, host) for at in range(3)]
        for version in (0, 2):
            updates = await asyncio.gather(*(advanced(mirror, endpoint.store.manifest(version)) for mirror in mirrors))
            assert all(bits(update.tensors) == bits(history[version]) for update in updates)
        for mirror in mirrors:
            mirror.close()
    files = [path for path in asked if "/files/" in path]
    assert len(files) == len(set(files)) == 3, "a snapshot and two deltas"
