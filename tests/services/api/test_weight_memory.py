"""One request brings an update; what is in memory is what is on disk; many requests share a read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.api import weight_memory
from services.api.weight_memory import WeightMemory
from services.contracts import FileKind, WeightManifest
from services.errors import VersionNotFoundError
from services.weights.bundle import MEDIA_TYPE, bundle, unbundle
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from services.weights.publisher import WeightPublisher
from tests.support.endpoint import BASE_URL, Endpoint, open_store
from tests.support.mirrors import advanced
from tests.support.weight_samples import bits, publish_versions

ACCEPTS = {"Accept": MEDIA_TYPE}


class Counting(httpx.AsyncBaseTransport):
    """Passes requests on, and keeps their paths."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        return await self._inner.handle_async_request(request)


def delta_of(manifest: WeightManifest) -> tuple[str, str]:
    """(Address, digest) of a version's delta."""
    entry = manifest.file(FileKind.DELTA)
    assert entry is not None
    return f"/v1/weights/{manifest.weight_version}/files/{entry.name}", entry.digest


async def test_a_generator_one_version_behind_makes_one_request_for_an_update(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    history = publish_versions(endpoint.store, 3)
    line = Counting(httpx.ASGITransport(endpoint.app))
    async with WeightClient(BASE_URL, deadline_s=5, transport=line) as client:
        mirror = WeightMirror(tmp_path / "mirror", client)
        await advanced(mirror, endpoint.store.manifest(1))
        line.paths.clear()
        manifest = await client.latest(1, mirror.digest, 0)
        assert manifest is not None
        update = await advanced(mirror, manifest)
        mirror.close()
    assert line.paths == ["/v1/weights/latest"]
    assert update.patches is not None
    assert bits(update.tensors) == bits(history[2])


@pytest.mark.parametrize(
    "params",
    [{"after": 0}, {"after": 1, "digest": "0" * 64}, {}],
    ids=["two behind", "another version 1", "holds nothing"],
)
async def test_others_get_the_manifest_alone(
    endpoint: Endpoint, http: httpx.AsyncClient, params: dict[str, Any]
) -> None:
    publish_versions(endpoint.store, 3)
    answer = await http.get("/v1/weights/latest", params={"timeout_s": 0, **params}, headers=ACCEPTS)
    assert WeightManifest.model_validate_json(answer.content).weight_version == 2
    assert answer.headers["content-type"] == "application/json"


async def test_who_does_not_ask_for_it_gets_no_file_with_the_manifest(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    publish_versions(endpoint.store, 2)
    answer = await http.get("/v1/weights/latest", params={"timeout_s": 0, "after": 0})
    assert WeightManifest.model_validate_json(answer.content).weight_version == 1
    asked = await http.get("/v1/weights/latest", params={"timeout_s": 0, "after": 0}, headers=ACCEPTS)
    manifest, change = unbundle(asked.content)
    assert manifest == answer.content
    assert change == endpoint.store.file_path(1, "delta.bin").read_bytes()
    assert asked.headers["vary"] == answer.headers["vary"] == "Accept"


async def test_a_large_delta_is_fetched_by_itself(
    endpoint: Endpoint, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_memory, "FILE_BYTES", 10)
    publish_versions(endpoint.store, 2)
    answer = await http.get("/v1/weights/latest", params={"timeout_s": 0, "after": 0}, headers=ACCEPTS)
    assert answer.headers["content-type"] == "application/json"
    path, digest = delta_of(endpoint.store.manifest(1))
    delta = endpoint.store.file_path(1, "delta.bin").read_bytes()
    assert (await http.get(path, params={"digest": digest})).content == delta


async def test_a_file_from_memory_is_answered_as_one_from_disk(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    publish_versions(endpoint.store, 2)
    path, digest = delta_of(endpoint.store.manifest(1))
    answers = [await http.get(path, params={"digest": digest})]
    file = endpoint.store.file_path(1, "delta.bin")
    file.rename(file.with_suffix(".away"))
    answers.append(await http.get(path, params={"digest": digest}))
    file.with_suffix(".away").rename(file)
    described = [
        (answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k != "last-modified"})
        for answer in answers
    ]
    assert described[0] == described[1]
    for headers in ({"Range": "bytes=1-2"}, {"If-None-Match": f'"{digest}"'}):
        assert (await http.get(path, params={"digest": digest}, headers=headers)).status_code in (206, 304)


async def test_from_memory_nothing_is_served_that_the_store_has_no_more(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    history = publish_versions(endpoint.store, 3)
    path, digest = delta_of(endpoint.store.manifest(2))
    for _ in range(2):
        assert (await http.get(path, params={"digest": digest})).status_code == 200
    endpoint.store.retract_after(1)
    assert (await http.get(path, params={"digest": digest})).status_code == 404
    endpoint.store.publish(2, history[0])
    assert (await http.get(path, params={"digest": digest})).status_code == 404


async def test_a_damaged_file_is_not_kept_in_memory(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    publish_versions(endpoint.store, 2)
    path, digest = delta_of(endpoint.store.manifest(1))
    file = endpoint.store.file_path(1, "delta.bin")
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    await http.get(path, params={"digest": digest})
    file.write_bytes(sound)
    assert (await http.get(path, params={"digest": digest})).content == sound


async def test_files_from_memory_need_the_token(tmp_path: Path, redis_url: str) -> None:
    from tests.support.endpoint import open_endpoint

    async with open_endpoint(tmp_path / "closed", redis_url, token="secret" * 8) as closed:
        publish_versions(closed.store, 2)
        path, digest = delta_of(closed.store.manifest(1))
        async with closed.http(token="secret" * 8) as known, closed.http() as stranger:
            for _ in range(2):
                assert (await known.get(path, params={"digest": digest})).status_code == 200
            assert (await stranger.get(path, params={"digest": digest})).status_code == 401


# -- the memory itself -------------------------------------------------------------------------------------------------


class ReadingStore:
    """Counts the reads of a store's newest version; `before` runs in front of each."""

    def __init__(self, store: WeightPublisher, before: Callable[[], None] = lambda: None) -> None:
        self.folder = store.folder
        self.manifest_path, self.manifest, self.file_path = store.manifest_path, store.manifest, store.file_path
        self._store = store
        self._before = before
        self.reads = 0

    def latest(self) -> WeightManifest | None:
        self.reads += 1
        self._before()
        return self._store.latest()


async def test_a_thousand_who_ask_at_once_share_one_read(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights")
    publish_versions(store, 2)
    reading: Any = ReadingStore(store)
    memory = WeightMemory(reading)
    answers = await asyncio.gather(*(memory.newest() for _ in range(1000)))
    assert {answer.manifest.weight_version for answer in answers if answer} == {1}
    assert len({id(answer) for answer in answers}) == 1
    assert reading.reads == 1


async def test_who_asks_after_a_publication_never_gets_what_was_before(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights")
    memory = WeightMemory(store)
    assert await memory.newest() is None
    for version, tensors in enumerate(publish_versions(open_store(tmp_path / "others"), 12)):
        store.publish(version, tensors)
        newest = await memory.newest()
        assert newest is not None
        assert newest.manifest.weight_version == version
    store.retract_after(3)
    newest = await memory.newest()
    assert newest is not None
    assert newest.manifest.weight_version == 3


async def test_who_stops_waiting_takes_nothing_from_the_others(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights")
    publish_versions(store, 2)
    memory = WeightMemory(store)
    impatient, patient = (asyncio.create_task(memory.newest()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    answer = await patient
    assert answer is not None
    assert answer.manifest.weight_version == 1


async def test_a_settled_folder_is_read_once_and_its_files_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_memory, "SETTLED_NS", 0)
    store = open_store(tmp_path / "weights")
    publish_versions(store, 6)
    sizes = [store.manifest(version).files[0].size_bytes for version in range(1, 6)]
    monkeypatch.setattr(weight_memory, "TOTAL_BYTES", 2 * max(sizes))
    reading: Any = ReadingStore(store)
    memory = WeightMemory(reading)
    for _ in range(3):
        await memory.newest()
    assert reading.reads == 1
    for version in range(1, 6):
        held = await memory.version(version)
        entry = held.files["delta.bin"]
        content = await memory.content(held, entry)
        assert content == store.file_path(version, "delta.bin").read_bytes()
        assert memory.at_hand(version, "delta.bin", entry.digest) == content
    first = (await memory.version(1)).files["delta.bin"]
    assert memory.at_hand(1, "delta.bin", first.digest) is None, "it was dropped for later ones"
    with pytest.raises(VersionNotFoundError):
        await memory.version(9)


def test_a_bundle_is_a_manifest_and_a_file() -> None:
    assert unbundle(bundle(b"{}", b"delta")) == (b"{}", b"delta")
    assert unbundle(bundle(b"{}", b"")) == (b"{}", b"")


async def test_clients_that_take_nothing_bound_what_is_sent_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound files are sent from the disk, until one of these clients has taken its answer or is gone."""
    store = open_store(tmp_path / "weights")
    publish_versions(store, 2)
    memory = WeightMemory(store)
    held = await memory.newest()
    assert held is not None
    path, digest = delta_of(held.manifest)
    name = path.rpartition("/")[2]
    content = await memory.bundled(held, 0, None)
    assert content is not None
    assert content is await memory.bundled(held, 0, None), "made once for all"
    monkeypatch.setattr(weight_memory, "SENDING_BYTES", 3 * len(content))
    taken = asyncio.Event()

    async def stalled(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await taken.wait()

    sending = [asyncio.create_task(memory.send(stalled, 200, [], content)) for _ in range(3)]
    await asyncio.sleep(0)  # each has begun
    assert await memory.bundled(held, 0, None) is None
    assert memory.at_hand(1, name, digest) is None
    sending[0].cancel()
    await asyncio.wait(sending[:1])
    assert memory.at_hand(1, name, digest) is not None
    taken.set()
    await asyncio.wait(sending)
    assert memory.sending_bytes == 0
    assert await memory.bundled(held, 0, None) is content
