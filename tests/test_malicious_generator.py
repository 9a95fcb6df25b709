"""A generator with its role's token and Redis user tries all that it can reach, and wastes nothing but its own work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from learner.rollouts.answer_check import AnswerCheck
from learner.rollouts.collector import Collector
from services.api.tokens import Role
from services.contracts import Part, Task
from services.net import free_port
from services.streams.acl import keep_scripts_loaded
from services.streams.connection import Keys, connect, connect_async
from services.streams.control import AsyncControl, ControlState
from services.streams.embedded import EmbeddedRedis
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats, Heartbeats
from services.streams.rollouts import RolloutReader
from services.streams.scripts import GROUP
from services.streams.tasks import TaskIssuer, TaskLeaser
from services.streams.wire import encode_rollout
from tests.support.answering import answers, rollout_of
from tests.support.collected import expected, ids, tasks_of
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.heartbeats import heartbeat
from tests.support.weight_samples import first_version

STEER, GENERATOR = "s" * 24, "g" * 24
VOCABULARY = 60
PATIENCE_S = 30.0
ROUNDS = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis", free_port(), "o" * 24, generator_password="g" * 24)
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    connect(server.url).close()
    yield server
    process.kill()
    process.wait()


@pytest.fixture
async def endpoint(tmp_path: Path, server: EmbeddedRedis) -> AsyncIterator[Endpoint]:
    role_tokens = {Role.GENERATOR: GENERATOR}
    async with open_endpoint(tmp_path / "run", server.url, token=STEER, role_tokens=role_tokens) as endpoint:
        endpoint.store.publish(0, first_version())
        loading = asyncio.create_task(keep_scripts_loaded(endpoint.redis))
        yield endpoint
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading


@pytest.fixture
async def attacker(server: EmbeddedRedis, endpoint: Endpoint) -> AsyncIterator[Any]:
    assert server.generator_url is not None
    client = await connect_async(server.generator_url)
    yield client
    await client.aclose()


async def test_no_request_changes_anything_or_shows_more_than_weights_and_status(endpoint: Endpoint) -> None:
    before = {path: path.read_bytes() for path in endpoint.folder.path.rglob("*") if path.is_file()}
    paths = endpoint.app.openapi()["paths"]
    bodies: list[Any] = [None, {"generators_target": 9}, {"weight_version": 0}]
    async with endpoint.http(token=GENERATOR, base_url="http://far.example") as http:
        for path, operations in paths.items():
            for method, body in itertools.product({*operations, "put", "patch", "delete"}, bodies):
                if method == "get" or (method, path) == ("post", "/login"):
                    continue
                answer = await http.request(method, path.replace("{version}", "0").replace("{name}", "x"), json=body)
                assert answer.status_code in (403, 405), (method, path)
        for path in ("/", "/v1/config", "/v1/rollouts", "/v1/events", "/metrics", "/openapi.json", "/v1/weights"):
            assert (await http.get(path)).status_code == 403, path
        for name in ("..%2f..%2frun.json", "..%2f..%2fidentity.key", "%2e%2e/%2e%2e/tokens.json", "/etc/passwd"):
            assert (await http.get(f"/v1/weights/0/files/{name}")).status_code in (403, 404, 422), name
        assert (await http.post("/login", data={"token": GENERATOR})).status_code == 401
    assert await AsyncControl(endpoint.redis, endpoint.keys).state() == ControlState()
    assert {path: path.read_bytes() for path in endpoint.folder.path.rglob("*") if path.is_file()} == before


async def attack(attacker: Any, keys: Keys, tasks: list[Task], over: threading.Event) -> None:
    """Each round of it: forged answers, tasks held and dropped, rollouts trimmed, names of others, garbage."""
    owner = heartbeat(Part.LEARNER, "learner", "failed").model_dump_json()
    for turn in itertools.count():
        if over.is_set():
            return
        task = tasks[turn % len(tasks)]
        forged = rollout_of(task).model_copy(update={"generator_id": f"attacker-{turn % 7}"})
        lies = [
            forged.model_copy(update={"prompt_tokens": forged.prompt_tokens[:1]}),
            forged.model_copy(update={"temperature": 9.0}),
            forged.model_copy(update={"sample": 700}),
            forged.model_copy(update={"task_id": "r000009-00009", "round": 9, "position": 9}),
            rollout_of(task, vocabulary=10 * VOCABULARY).model_copy(update={"generator_id": "attacker"}),
        ]
        commands: list[tuple[Any, ...]] = [
            *(("XADD", keys.rollouts, "*", *itertools.chain(*encode_rollout(lie).items())) for lie in lies),
            ("XADD", keys.rollouts, "*", "meta", b"\xff{", "prompt", b"x", "response", b"x"),
            ("XADD", keys.dead_letters, "*", "source", "tasks", "reason", "a lie"),
            ("HSET", keys.heartbeats, "learner", f"9999999999.0 {owner}"),
            ("HSET", keys.heartbeats, "generator-0", b"\xff"),
            ("HINCRBY", keys.counters, "reissued", 10**15),
            (
                "XADD",
                keys.generator_events,
                "*",
                "source",
                "services",
                "kind",
                "control",
                "fields",
                '{"action": "stop"}',
            ),
            ("XREADGROUP", "GROUP", GROUP, "attacker", "COUNT", 1, "STREAMS", keys.tasks, ">"),
        ]
        if turn in (3, 40):  # what delays the run: twice and no more, as each time costs the learner a wait
            # tasks that the group has passed over: read without a lease, acknowledged without rollouts
            commands += [("XREADGROUP", "GROUP", GROUP, "x", "COUNT", 2, "NOACK", "STREAMS", keys.tasks, ">")]
            commands += [("XADD", keys.dead_letters, "18446744073709551615-18446744073709551615", "a", "b")]
            commands += [("XADD", keys.generator_events, "18446744073709551615-18446744073709551615", "a", "b")]
            commands += [("XADD", keys.rollouts, "MAXLEN", 0, "*", "a", "b")]
            commands += [("XADD", keys.rollouts, "18446744073709551615-18446744073709551615", "a", "b")]
            commands += [("HDEL", keys.open, *(task.task_id for task in tasks[::2]))]
        for command in commands:
            with contextlib.suppress(ResponseError):
                await attacker.execute_command(*command)
        await asyncio.sleep(0.01)


def answer_honestly(url: str, keys: Keys, over: threading.Event) -> None:
    """Two generators' worth of honest work, as the same user; what fails is tried again, as a generator restarts."""

    async def work() -> None:
        client = await connect_async(url)
        leaser = TaskLeaser(client, keys, "honest", lease_s=0.5)
        try:
            while not over.is_set():
                with contextlib.suppress(ResponseError):
                    for lease in await leaser.lease(2, block_s=0.1):
                        await leaser.complete(lease, answers(lease.task))
        finally:
            await client.aclose()

    asyncio.run(work())


async def test_the_learner_gets_the_honest_answers_whatever_is_done_to_the_queue(
    server: EmbeddedRedis, endpoint: Endpoint, attacker: Any
) -> None:
    keys, over = endpoint.keys, threading.Event()
    everything = [task for round_ in range(ROUNDS) for task in tasks_of(round_)]
    truth = {rollout.rollout_id: rollout for task in everything for rollout in answers(task)}
    with connect(server.url) as learner:
        beats = Heartbeats(learner, keys)
        beats.send(heartbeat(Part.LEARNER, "learner", "training"))
        collector = Collector(
            TaskIssuer(learner, keys),
            RolloutReader(learner, keys),
            first_round=0,
            check=AnswerCheck(VOCABULARY),
            look_every_s=0.05,
            recheck_after_s=0.3,
        )
        collector.start()
        assert server.generator_url is not None
        honest = asyncio.create_task(asyncio.to_thread(answer_honestly, server.generator_url, keys, over))
        attacking = asyncio.create_task(attack(attacker, keys, everything, over))
        try:
            for round_ in range(ROUNDS):
                await asyncio.to_thread(collector.expect, tasks_of(round_))
                got = await asyncio.to_thread(list, collector.in_order(round_, PATIENCE_S))
                assert ids(iter(got)) == expected(round_)
                for rollout in got:
                    assert rollout.response_tokens.tolist() == truth[rollout.rollout_id].response_tokens.tolist()
        finally:
            over.set()
            await asyncio.gather(honest, attacking)
            await asyncio.to_thread(collector.stop)
        assert [(beat.part_id, beat.state) for beat, _ in beats.read_all()] == [("learner", "training")]
        assert await AsyncControl(endpoint.redis, keys).state() == ControlState()
        assert await AsyncEventLog(endpoint.redis, keys).tail(100) == []


async def test_nothing_of_another_run_or_of_the_server_is_reached(attacker: Any, server: EmbeddedRedis) -> None:
    with connect(server.url) as owner:
        owner.set("sept:{other}:control", "theirs")
        owner.set("unrelated", "theirs")
    for key in ("sept:{other}:control", "unrelated"):
        for command in ("GET", "DEL", "TYPE"):
            with pytest.raises(NoPermissionError):
                await attacker.execute_command(command, key)
    await AsyncHeartbeats(attacker, Keys("other")).forget("x")  # of a run beside it: docs/security.md says so
