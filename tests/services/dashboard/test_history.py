"""What a run has done can be asked for over HTTP, and every open page is told the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.dashboard.timeseries import TimeSeries
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.recorded_run import KNOWN_QUESTION, record, write_rollouts
from tests.support.weight_samples import first_version


@pytest.fixture
async def endpoint(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    record(tmp_path / "run", rounds=30)
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        yield endpoint


@pytest.fixture
async def http(endpoint: Endpoint) -> AsyncIterator[httpx.AsyncClient]:
    async with endpoint.http() as http:
        yield http


async def test_rounds_come_from_the_file_that_outlives_restarts(http: httpx.AsyncClient) -> None:
    window = (await http.get("/v1/rounds")).json()
    assert window["lines"] == 30
    assert window["columns"]["round"]["mean"] == list(range(30))
    part = (await http.get("/v1/rounds", params={"from": 3, "to": 8, "buckets": 4})).json()
    assert part["per_bucket"] == 2
    assert part["columns"]["round"]["low"] == [3, 4, 6, 8]


async def test_rounds_are_sent_compressed_and_only_when_there_is_something_new(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    first = await http.get("/v1/rounds")
    assert first.headers["Content-Encoding"] == "gzip"
    assert int(first.headers["Content-Length"]) < len(first.content) / 2
    held = {"If-None-Match": first.headers["ETag"]}
    again = await http.get("/v1/rounds", headers=held)
    assert (again.status_code, again.content) == (304, b"")
    with endpoint.folder.metrics.open("ab") as metrics:
        metrics.write(b'{"round": 30}\n')
    newer = await http.get("/v1/rounds", headers=held)
    assert (newer.status_code, newer.json()["lines"]) == (200, 31)
    assert (await http.get("/v1/rounds", headers={"Accept-Encoding": "identity"})).json() == newer.json()


def test_a_reader_that_starts_anew_tells_its_content_from_another_of_the_same_length(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n')
    before = TimeSeries(path).tag()
    path.write_text('{"round": 2}\n')
    assert TimeSeries(path).tag() != before


async def test_the_queue_has_a_history_of_its_own(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/queue")).json()["columns"] == {}
    (endpoint.folder.path / "queue.jsonl").write_text('{"time": 5.0, "tasks_queued": 7}\n')
    assert (await http.get("/v1/queue")).json()["columns"]["tasks_queued"]["mean"] == [7]


async def test_rollouts_are_searched(http: httpx.AsyncClient) -> None:
    found = (await http.get("/v1/rollouts", params={"text": "frac{1}{2}"})).json()
    assert [one["question"] for one in found["records"]] == [KNOWN_QUESTION]
    older = (await http.get("/v1/rollouts", params={"round": 28, "limit": 1})).json()
    assert (older["records"][0]["round"], older["next_position"]) == (28, {"round": 28, "line": 1})
    ranked = (await http.get("/v1/rollouts", params={"order": "longest", "ended_by": "length"})).json()["records"]
    assert {one["finish_reason"] for one in ranked} == {"length"}
    for wrong in ({"limit": 0}, {"like": "../../etc/passwd"}, {"order": "random"}, {"unknown": 1}, {"verdict": "x"}):
        assert (await http.get("/v1/rollouts", params=wrong)).status_code == 422


async def test_staleness_versions_settings_and_warnings(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/staleness")).json() == {"0": 2, "1": 1}
    manifest = endpoint.store.publish(0, first_version())
    (version,) = (await http.get("/v1/versions")).json()
    assert (version["weight_version"], version["digest"]) == (0, manifest.digest)
    assert version["full_bytes"] == manifest.full_bytes
    assert "tau_start = 0.6" in (await http.get("/v1/config")).text
    assert [one["text"] for one in (await http.get("/v1/warnings")).json()][:1] == ["lease_lost task_id=r000001-00001"]
    endpoint.folder.config.unlink()
    assert (await http.get("/v1/config")).status_code == 404


async def test_requests_are_the_last_events_of_their_kind(http: httpx.AsyncClient) -> None:
    await http.post("/v1/control/pause")
    await http.post("/v1/control/generators", json={"generators_target": 3})
    events = (await http.get("/v1/events/last", params={"kind": "control", "limit": 5})).json()
    assert [event["fields"]["action"] for event in events] == ["generators", "pause"]
    assert (await http.get("/v1/events/last", params={"kind": "published"})).json() == []


async def test_a_round_cut_back_while_searched_is_no_error(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    write_rollouts(endpoint.folder, 31, [])
    assert (await http.get("/v1/rollouts", params={"text": "nowhere"})).json()["records"] == []
