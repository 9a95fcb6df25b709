"""Versions over HTTP: manifests, files in parts, long polls, publishing from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.contracts import WeightManifest
from services.streams.events import AsyncEventLog
from services.weights.client import WeightClient
from services.weights.store import WeightStore
from services.weights.tensors import read_safetensors
from tests.support.endpoint import Endpoint, open_endpoint, open_store, served
from tests.support.weight_samples import bits, first_version, next_version

SNAPSHOT = "/v1/weights/0/files/model.safetensors"


@pytest.fixture
def source(endpoint: Endpoint, tmp_path: Path) -> WeightStore:
    """A learner's store on another machine, with versions 0 and 1."""
    store = open_store(tmp_path / "learner", endpoint.keys.run_id)
    store.publish(0, first_version())
    store.publish(1, next_version(first_version(), 1))
    return store


def files_of(store: WeightStore, version: int) -> dict[str, Path]:
    return {entry.name: store.file_path(version, entry.name) for entry in store.manifest(version).files}


async def test_before_the_first_version_there_is_nothing(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/weights/latest", params={"timeout_s": 0})).status_code == 204
    assert (await http.get("/v1/weights/0")).status_code == 404
    assert (await http.get(SNAPSHOT)).status_code == 404


async def test_manifests_are_served_as_published(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    manifest = endpoint.store.publish(0, first_version())
    for path in ("/v1/weights/latest", "/v1/weights/0"):
        answer = await http.get(path)
        assert WeightManifest.model_validate_json(answer.content) == manifest
        assert answer.headers["etag"] == f'"{manifest.digest}"'
        assert answer.headers["cache-control"] == "no-cache"
    held = await http.get("/v1/weights/0", headers={"If-None-Match": f'"{manifest.digest}"'})
    assert held.status_code == 304


async def test_latest_answers_unless_exactly_that_version_is_held(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    endpoint.store.publish(0, first_version())
    digest = endpoint.store.publish(1, next_version(first_version(), 1)).digest

    async def status(**params: str | int) -> int:
        return (await http.get("/v1/weights/latest", params={"timeout_s": 0, **params})).status_code

    assert await status(after=1, digest=digest) == 204
    assert await status(after=1) == 204
    assert await status(after=0) == 200
    assert await status(after=1, digest="0" * 64) == 200, "the version was published anew"
    assert await status(after=9) == 200, "the learner went back"


async def test_a_file_is_served_whole_in_parts_or_not_again(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    (entry,) = endpoint.store.publish(0, first_version()).files
    content = endpoint.store.file_path(0, entry.name).read_bytes()
    etag = f'"{entry.digest}"'
    whole = await http.get(SNAPSHOT)
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, content, etag)
    part = await http.get(SNAPSHOT, headers={"Range": "bytes=100-199", "If-Range": etag})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert (await http.get(SNAPSHOT, headers={"If-None-Match": etag})).status_code == 304
    assert (await http.get(SNAPSHOT, headers={"Range": f"bytes={len(content)}-"})).status_code == 416
    assert (await http.get(SNAPSHOT, headers={"Range": "bytes=9-1"})).status_code == 400


async def test_only_an_address_with_the_digest_may_be_kept_for_ever(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    (entry,) = endpoint.store.publish(0, first_version()).files
    named = await http.get(SNAPSHOT, params={"digest": entry.digest})
    assert named.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await http.get(SNAPSHOT)).headers["cache-control"] == "no-cache"
    endpoint.store.publish(0, first_version(9))
    assert (await http.get(SNAPSHOT, params={"digest": entry.digest})).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v1/weights/0/files/..%2f..%2frun.json",
        "/v1/weights/0/files/%2e%2e%2f%2e%2e%2frun.json",
        "/v1/weights/0/files/%2e%2e",
        "/v1/weights/0/files/manifest.json",
        "/v1/weights/0/files/.staging",
        "/v1/weights/0/files/a%00b",
        "/v1/weights/..%2f/files/run.json",
        "/v1/weights/-1",
        "/v1/weights/" + "9" * 30,
        "/v1/weights/latest?timeout_s=nan",
        "/v1/weights/latest?timeout_s=1e9",
        "/v1/weights/latest?after=x",
        "/v1/weights/latest?digest=short",
    ],
)
async def test_no_path_leads_out_of_the_store_and_bad_input_is_refused(
    endpoint: Endpoint, http: httpx.AsyncClient, path: str
) -> None:
    endpoint.store.publish(0, first_version())
    assert (await http.get(path)).status_code in (404, 422)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2frun.json", ".staging", "a%2fb", "a%00b", "x" * 200])
async def test_no_upload_leads_out_of_the_store(endpoint: Endpoint, http: httpx.AsyncClient, name: str) -> None:
    before = set(endpoint.folder.path.rglob("*"))
    assert (await http.put(f"/v1/weights/0/files/{name}", content=b"x")).status_code in (404, 405, 422)
    assert set(endpoint.folder.path.rglob("*")) == before


async def test_a_waiting_request_is_woken_by_the_published_event(endpoint: Endpoint) -> None:
    held = endpoint.store.publish(0, first_version())
    async with served(endpoint.app) as url, WeightClient(url, deadline_s=5) as client:
        waiting = asyncio.create_task(client.latest(0, held.digest, 30))
        published = await asyncio.to_thread(endpoint.store.publish, 1, next_version(first_version(), 1))
        await AsyncEventLog(endpoint.redis, endpoint.keys).append("learner", "published", weight_version=1)
        assert await asyncio.wait_for(waiting, 10) == published


async def test_a_waiting_request_sees_the_disk_when_no_event_comes(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(http.get("/v1/weights/latest", params={"timeout_s": 30}))
    await asyncio.to_thread(endpoint.store.publish, 0, first_version())
    assert (await asyncio.wait_for(waiting, 10)).status_code == 200


async def test_a_waiting_request_ends_when_the_app_goes_down(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(http.get("/v1/weights/latest", params={"timeout_s": 60}))
    endpoint.app.state.notices.close()
    assert (await asyncio.wait_for(waiting, 5)).status_code == 204


async def test_a_learner_elsewhere_publishes_whole_versions(endpoint: Endpoint, source: WeightStore) -> None:
    async with endpoint.weights() as client:
        for version in (0, 1):
            await client.publish(source.manifest(version), files_of(source, version))
    assert endpoint.store.latest() == source.manifest(1)
    assert bits(endpoint.store.load(1)) == bits(source.load(1))
    kinds = [event.kind for event in await AsyncEventLog(endpoint.redis, endpoint.keys).tail(10)]
    assert kinds == ["published", "published"]


async def test_files_without_their_manifest_are_no_version(
    endpoint: Endpoint, http: httpx.AsyncClient, source: WeightStore
) -> None:
    content = source.file_path(0, "model.safetensors").read_bytes()
    assert (await http.put(SNAPSHOT, content=content)).status_code == 204
    assert (await http.get("/v1/weights/0")).status_code == 404
    assert endpoint.store.versions() == []


async def test_a_manifest_without_its_files_is_no_version(
    endpoint: Endpoint, http: httpx.AsyncClient, source: WeightStore
) -> None:
    answer = await http.post("/v1/weights/0", json=source.manifest(0).model_dump(mode="json"))
    assert answer.status_code == 422
    assert "was not sent" in answer.json()["error"]
    assert endpoint.store.versions() == []


async def test_what_is_not_as_the_manifest_says_is_no_version(
    endpoint: Endpoint, http: httpx.AsyncClient, source: WeightStore
) -> None:
    content = bytearray(source.file_path(0, "model.safetensors").read_bytes())
    content[-1] ^= 1
    await http.put(SNAPSHOT, content=bytes(content))
    answer = await http.post("/v1/weights/0", json=source.manifest(0).model_dump(mode="json"))
    assert answer.status_code == 409
    assert endpoint.store.versions() == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[1", b'{"created_at": NaN}', b"\xff\xfe", b"[" * 10_000])
async def test_a_malformed_manifest_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/weights/0", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json().keys() == {"error", "hint"}


async def test_a_manifest_must_be_of_the_version_in_the_address(http: httpx.AsyncClient, source: WeightStore) -> None:
    answer = await http.post("/v1/weights/1", json=source.manifest(0).model_dump(mode="json"))
    assert answer.status_code == 422


async def test_uploads_are_bounded(tmp_path: Path, redis_url: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)

    async with open_endpoint(tmp_path / "small", redis_url, max_upload_bytes=5000) as endpoint, endpoint.http() as http:
        assert (await http.put(SNAPSHOT, content=bytes(5001))).status_code == 413
        assert (await http.put(SNAPSHOT, content=endless())).status_code == 413
        assert (await http.put(SNAPSHOT, content=bytes(3000))).status_code == 204
        assert (await http.put(SNAPSHOT, content=bytes(4000))).status_code == 204, "in place of the one before"
        assert (await http.put("/v1/weights/0/files/other", content=bytes(2000))).status_code == 413
        assert (await http.put("/v1/weights/1/files/other", content=bytes(2000))).status_code == 204
        staged = [path for path in (endpoint.store.folder / ".staging").rglob("*") if path.is_file()]
        assert [path.name for path in staged] == ["other"], "another version takes the place of the first"


async def test_a_served_file_is_the_published_tensors(endpoint: Endpoint, tmp_path: Path) -> None:
    manifest = endpoint.store.publish(0, first_version())
    async with served(endpoint.app) as url, WeightClient(url, deadline_s=5) as client:
        path = await client.fetch(0, manifest.files[0], tmp_path / "snapshot")
    assert bits(read_safetensors(path)) == bits(first_version())
