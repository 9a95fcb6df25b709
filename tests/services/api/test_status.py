"""The status says what the run is doing and what is missing; the metrics are the same numbers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
import pytest

from services import durable
from services.api.status import StatusReader, last_rounds, run_state
from services.contracts import Heartbeat, Part, RoundMetrics, StatusSnapshot
from services.net import free_port
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect_async
from services.streams.control import AsyncControl
from services.streams.embedded import EmbeddedRedis
from services.streams.heartbeats import AsyncHeartbeats
from services.weights.reader import WeightReader
from tests.support.endpoint import Endpoint
from tests.support.heartbeats import heartbeat
from tests.support.weight_samples import first_version


def round_metrics(number: int) -> RoundMetrics:
    zeros = {name: 0 for name, field in RoundMetrics.model_fields.items() if field.annotation in (int, float)}
    return RoundMetrics.model_validate(zeros | {"round": number, "weight_version": number + 1, "loss": 0.5})


async def status(http: httpx.AsyncClient) -> StatusSnapshot:
    answer = await http.get("/v1/status")
    assert answer.status_code == 200
    return StatusSnapshot.model_validate_json(answer.content)


async def send(endpoint: Endpoint, *beats: Heartbeat) -> None:
    sender = AsyncHeartbeats(endpoint.redis, endpoint.keys)
    for beat in beats:
        await sender.send(beat)


async def test_a_run_without_parts_waits_for_its_learner(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    snapshot = await status(http)
    assert (snapshot.state, snapshot.detail) == ("starting", "waiting for the learner")
    assert (snapshot.run_id, snapshot.weight_version, snapshot.round) == (endpoint.keys.run_id, None, 0)


async def test_a_running_run_is_told_whole(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    manifest = endpoint.store.publish(0, first_version())
    lines = [round_metrics(number).as_line() for number in range(3)]
    durable.write_file(endpoint.folder.metrics, "\n".join(lines) + "\n")
    identity = json.loads(endpoint.folder.identity.read_text()) | {"rounds_total": 9}
    durable.write_file(endpoint.folder.identity, json.dumps(identity))
    learner = heartbeat(Part.LEARNER, "learner-1", "training", message="all is well")
    generator = heartbeat(Part.GENERATOR, "generator-1", "generating", weight_version=0)
    await send(endpoint, learner, generator)
    snapshot = await status(http)
    assert (snapshot.state, snapshot.detail) == ("running", "all is well")
    assert (snapshot.round, snapshot.rounds_total) == (3, 9)
    assert (snapshot.weight_version, snapshot.weight_digest) == (0, manifest.digest)
    assert snapshot.last_round == round_metrics(2)
    assert snapshot.learner == learner
    assert [(row.heartbeat, row.lost) for row in snapshot.generators] == [(generator, False)]


async def test_missing_generators_are_named(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    endpoint.store.publish(0, first_version())
    await send(endpoint, heartbeat(Part.LEARNER, "learner-1", "waiting_for_rollouts"))
    loading = (await status(http)).detail
    assert re.fullmatch(r"no generator is up yet: loading engines, \d+ s", loading)
    durable.write_file(endpoint.folder.metrics, round_metrics(0).as_line() + "\n")
    assert (await status(http)).detail == "no generator is alive"


async def test_why_a_part_is_missing_is_said_where_a_supervisor_knows(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    def died(part: str, ended: str, words: str = "") -> str:
        return json.dumps({"event": "part_died", "part": part, "ended": ended, "last_words": words})

    hung = "killed, as it had sent no heartbeat for 1200 s"
    lines = [died("learner", "exit code 1"), '{"event": "run_starting"}', died("learner", "exit code 4", "disk full")]
    supervisor = endpoint.folder.log_of("supervisor")
    supervisor.write_text("\n".join([*lines, died("generator-0", hung), '{"event": "part_di']))
    assert (await status(http)).detail == "waiting for the learner; learner has ended before (exit code 4): disk full"
    endpoint.store.publish(0, first_version())
    await send(endpoint, heartbeat(Part.LEARNER, "learner-1", "waiting_for_rollouts"))
    durable.write_file(endpoint.folder.metrics, round_metrics(0).as_line() + "\n")
    assert (await status(http)).detail == f"no generator is alive; generator-0 has ended before ({hung})"
    supervisor.write_text('{"event": "run_starting"}\n')
    assert (await status(http)).detail == "no generator is alive"


async def test_parts_that_load_say_so_from_the_first_second(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    def log(*events: tuple[str, str, float]) -> None:
        lines = [json.dumps({"event": kind, "part": part, "time": time.time() - ago_s}) for kind, part, ago_s in events]
        endpoint.folder.log_of("supervisor").write_text("\n".join(['{"event": "run_starting"}', *lines]) + "\n")

    def loading(snapshot: StatusSnapshot) -> dict[str, str]:
        assert all(0 <= part.for_s - 100 < 60 for part in snapshot.starting)
        return {part.part_id: part.doing for part in snapshot.starting}

    started = [("part_started", part, 100.0) for part in ("redis", "services", "learner", "generator-0")]
    log(*started)
    snapshot = await status(http)
    assert loading(snapshot) == {"learner": "loading model", "generator-0": "loading engine"}
    assert re.fullmatch(r"waiting for the learner: loading model, 1\d\d s", snapshot.detail)
    await send(endpoint, heartbeat(Part.LEARNER, "learner", "starting"))
    assert loading(await status(http)) == {"learner": "loading model", "generator-0": "loading engine"}
    await send(endpoint, heartbeat(Part.LEARNER, "learner", "training"))
    await send(endpoint, heartbeat(Part.GENERATOR, "generator-0", "generating"))
    assert loading(await status(http)) == {}


async def test_a_part_that_was_started_again_loads_whatever_its_last_heartbeat_said(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    endpoint.store.publish(0, first_version())
    await send(endpoint, heartbeat(Part.LEARNER, "learner", "training"))
    await send(endpoint, heartbeat(Part.GENERATOR, "generator-0", "generating"))
    events = [
        {"event": "part_died", "part": "generator-0", "ended": "SIGKILL"},
        {"event": "part_started", "part": "generator-0", "time": time.time() + 30},  # after the heartbeat, for sure
    ]
    endpoint.folder.log_of("supervisor").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    snapshot = await status(http)
    assert [part.part_id for part in snapshot.starting] == ["generator-0"]
    assert snapshot.detail.startswith(
        "generator-0 was started again: loading engine, 0 s; generator-0 has ended before"
    )


async def test_a_paused_run_says_so(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    await AsyncControl(endpoint.redis, endpoint.keys).set_paused(True)
    await send(endpoint, heartbeat(Part.LEARNER, "learner-1", "training"))
    assert (await status(http)).state == "paused"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
async def test_how_a_run_ended_outlasts_its_learner(endpoint: Endpoint, http: httpx.AsyncClient, state: str) -> None:
    await send(endpoint, heartbeat(Part.LEARNER, "learner-1", state, message="why"))
    snapshot = await status(http)
    assert (snapshot.state, snapshot.detail) == (state, "why")


def test_a_learner_without_a_version_is_still_starting() -> None:
    learner = heartbeat(Part.LEARNER, "learner-1", "training")
    assert run_state(learner, paused=False, published=False) == "starting"
    assert run_state(learner, paused=False, published=True) == "running"


@pytest.mark.parametrize("rest", ["", "\n", '\n{"round": 9', "\n\n"])
def test_the_last_whole_lines_count(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [round_metrics(number).as_line() for number in range(200)]
    path.write_text("\n".join(lines) + rest)
    assert last_rounds(path, 3) == [round_metrics(number) for number in (197, 198, 199)]


def test_no_line_is_no_round(tmp_path: Path) -> None:
    assert last_rounds(tmp_path / "missing", 3) == []
    (tmp_path / "empty").write_text("")
    assert last_rounds(tmp_path / "empty", 3) == []


@pytest.mark.parametrize(
    ("state", "detail"),
    [("waiting_for_rollouts", "waiting for rollouts of round 3"), ("training", "training round 3")],
)
async def test_a_running_run_says_what_its_learner_does(
    endpoint: Endpoint, http: httpx.AsyncClient, state: str, detail: str
) -> None:
    endpoint.store.publish(0, first_version())
    await send(
        endpoint,
        heartbeat(Part.LEARNER, "learner-1", state, weight_version=3),
        heartbeat(Part.GENERATOR, "generator-1", "generating", weight_version=0),
    )
    assert (await status(http)).detail == detail


@pytest.mark.parametrize(
    ("refuse", "named"),
    [
        (
            "REPLICAOF 127.0.0.1 1",
            r"Redis takes no writes \(READONLY\): the server is a read-only replica: let",
        ),
        ("CONFIG SET maxmemory 1", r"Redis takes no writes \(OOM\): the server's memory is full: raise its maxmemory"),
    ],
)
@pytest.mark.parametrize("sent_one", [True, False])
async def test_a_redis_that_takes_no_heartbeats_is_named_instead_of_their_senders(
    refuse: str, named: str, sent_one: bool, tmp_path: Path
) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port(), "correct-horse-battery")
    process = await asyncio.create_subprocess_exec(*server.command(), stdout=asyncio.subprocess.DEVNULL)
    try:
        async with await connect_async(server.url) as client:
            folder = RunFolder(tmp_path / "run").create()
            keys, store = Keys(folder.run_id), WeightReader(folder.weights, folder.run_id)
            reader = StatusReader(folder, store, client, keys, lost_after_s=-1)
            if sent_one:
                await AsyncHeartbeats(client, keys).send(heartbeat(Part.LEARNER, "learner", "training"))
            assert ("has been silent" if sent_one else "waiting for the learner") in (await reader.read()).detail
            await client.execute_command(*refuse.split())  # type: ignore[no-untyped-call]
            assert re.match(named, (await reader.read()).detail)
    finally:
        process.kill()
        await process.wait()
