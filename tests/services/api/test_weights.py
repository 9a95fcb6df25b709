"""Versions over HTTP: manifests, files in parts, long polls."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from services.contracts import WeightManifest
from services.streams.events import AsyncEventLog
from services.tensors import read_safetensors
from services.weights.client import WeightClient
from tests.support.endpoint import Endpoint, served
from tests.support.weight_samples import bits, first_version, next_version

SNAPSHOT = "/v1/weights/0/files/model.safetensors"


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


@pytest.mark.parametrize(("method", "path"), [("PUT", SNAPSHOT), ("POST", "/v1/weights/0"), ("DELETE", SNAPSHOT)])
async def test_versions_cannot_be_changed_over_http(
    endpoint: Endpoint, http: httpx.AsyncClient, method: str, path: str
) -> None:
    endpoint.store.publish(0, first_version())
    before = set(endpoint.folder.path.rglob("*"))
    assert (await http.request(method, path, content=b"x")).status_code == 405
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
    endpoint.app.state.notifier.close()
    assert (await asyncio.wait_for(waiting, 5)).status_code == 204


async def test_a_served_file_is_the_published_tensors(endpoint: Endpoint, tmp_path: Path) -> None:
    manifest = endpoint.store.publish(0, first_version())
    async with served(endpoint.app) as url, WeightClient(url, deadline_s=5) as client:
        path = await client.fetch(0, manifest.files[0], tmp_path / "snapshot")
    assert bits(read_safetensors(path)) == bits(first_version())
