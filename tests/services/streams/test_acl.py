"""A generator's Redis user: it does all that a generator does, and nothing that harms somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import NoPermissionError

from services.contracts import Part
from services.net import free_port
from services.streams import acl
from services.streams.acl import keep_scripts_loaded
from services.streams.connection import Keys, connect, connect_async
from services.streams.embedded import EmbeddedRedis
from services.streams.events import (
    MALFORMED,
    MAX_EVENT_BYTES,
    AsyncEventLog,
    EventLog,
    take_over_events_of_generators,
)
from services.streams.heartbeats import AsyncHeartbeats, Heartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer, TaskLeaser
from tests.support.heartbeats import heartbeat
from tests.support.stream_builders import make_rollouts, make_task

KEYS = Keys("run-1")
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), free_port(), "o" * 24, generator_password="g" * 24)
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    connect(server.url).close()
    yield server
    process.kill()
    process.wait()


@pytest.fixture
def owner(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with connect(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
async def scripts_loaded(server: EmbeddedRedis, owner: redis.Redis) -> AsyncIterator[None]:
    """As the services do it."""
    client = await connect_async(server.url)
    keeping = asyncio.create_task(keep_scripts_loaded(client, every_s=0.01))
    yield
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await client.aclose()


@pytest.fixture
async def generator(server: EmbeddedRedis, owner: redis.Redis) -> AsyncIterator[redis.asyncio.Redis]:
    assert server.generator_url is not None
    client = await connect_async(server.generator_url, deadline_s=PATIENCE_S)
    yield client
    await client.aclose()


async def raw(client: redis.asyncio.Redis, *command: Any) -> Any:
    untyped: Any = client
    return await untyped.execute_command(*command)


@pytest.mark.usefixtures("scripts_loaded")
async def test_a_generator_does_all_of_its_work(owner: redis.Redis, generator: redis.asyncio.Redis) -> None:
    issuer, reader = TaskIssuer(owner, KEYS), RolloutReader(owner, KEYS)
    tasks = [make_task(index) for index in range(4)]
    issuer.issue(tasks)
    leaser = TaskLeaser(generator, KEYS, "generator-0", lease_s=30)
    first, second, third = await leaser.lease(3, block_s=1)
    assert await leaser.renew([first, second]) == {first.entry_id, second.entry_id}
    assert await leaser.complete(first, make_rollouts(first.task))
    await leaser.release([second])
    assert await leaser.reject(third.entry_id, {b"meta": b"{}"}, "a reason")
    [again, last] = await leaser.lease(4, block_s=1)
    assert {again.task.task_id, last.task.task_id} == {second.task.task_id, tasks[3].task_id}
    await leaser.leave()
    assert [rollout.task_id for _, rollout in reader.read(1)] == [first.task.task_id]
    beats = AsyncHeartbeats(generator, KEYS)
    await beats.send(heartbeat(Part.GENERATOR, "generator-0", "generating"))
    assert [beat.part_id for beat, _ in Heartbeats(owner, KEYS).read_all()] == ["generator-0"]
    await beats.forget("generator-0")
    await AsyncEventLog(generator, KEYS, of_generator=True).append("generator-0", "failed", message="why")


async def test_a_server_that_has_lost_the_scripts_is_waited_for_until_the_services_load_them(
    server: EmbeddedRedis, owner: redis.Redis, generator: redis.asyncio.Redis
) -> None:
    owner.script_flush()
    TaskIssuer(owner, KEYS).issue([make_task(0)])
    leasing = asyncio.create_task(TaskLeaser(generator, KEYS, "generator-0", lease_s=30).lease(1, block_s=1))
    await asyncio.wait([leasing], timeout=0.2)
    assert not leasing.done()
    client = await connect_async(server.url)
    loading = asyncio.create_task(keep_scripts_loaded(client))
    assert len(await asyncio.wait_for(leasing, PATIENCE_S)) == 1
    loading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    await client.aclose()


EVERY_KEY = [name for name in vars(Keys) if isinstance(vars(Keys)[name], property)]
FORBIDDEN: list[tuple[Any, ...]] = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", 0), ("RANDOMKEY",), ("DBSIZE",), ("SWAPDB", 0, 1),
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/"), ("ACL", "LIST"), ("ACL", "SETUSER", "generator", "+@all"),
    ("SHUTDOWN",), ("SAVE",), ("BGREWRITEAOF",), ("REPLICAOF", "127.0.0.1", 1), ("MONITOR",),
    ("INFO",), ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", 1000), ("COMMAND",),
    ("SCRIPT", "LOAD", "return 1"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("EVAL", "while true do end", 0),
    ("FUNCTION", "LOAD", "#!lua name=x\nreturn 1"), ("FUNCTION", "FLUSH"), ("SUBSCRIBE", "x"), ("PUBLISH", "x", "y"),
    ("MULTI",), ("MODULE", "LIST"), ("SLOWLOG", "GET"), ("LATENCY", "RESET"), ("WAIT", 9, 0),
]  # fmt: skip
ON_A_KEY: list[tuple[Any, ...]] = [
    ("DEL", 0), ("UNLINK", 0), ("RENAME", 0, "x"), ("EXPIRE", 0, 1), ("SET", 0, "x"), ("GET", 0), ("DUMP", 0),
    ("RESTORE", 0, 0, b"x", "REPLACE"), ("COPY", 0, "x"), ("MOVE", 0, 1), ("XTRIM", 0, "MAXLEN", 0), ("TYPE", 0),
    ("XRANGE", 0, "-", "+"), ("XREAD", "STREAMS", 0, "0"), ("XSETID", 0, "9-9"), ("XGROUP", "DESTROY", 0, "generators"),
    ("XGROUP", "SETID", 0, "generators", "$"), ("HGETALL", 0), ("OBJECT", "ENCODING", 0), ("SORT", 0), ("WATCH", 0),
]  # fmt: skip


async def test_no_other_command_is_let_through(generator: redis.asyncio.Redis) -> None:
    for command in FORBIDDEN:
        with pytest.raises(NoPermissionError):
            await raw(generator, *command)
    for name in EVERY_KEY:
        for command in ON_A_KEY:
            with pytest.raises(NoPermissionError):
                await raw(generator, *(getattr(KEYS, name) if word == 0 else word for word in command))


@pytest.mark.parametrize(
    ("command", "writable"),
    [
        (("XADD", 0, "*", "a", "b"), {"rollouts", "dead_letters", "generator_events"}),
        (("HSET", 0, "a", "b"), {"heartbeats"}),
        (("HDEL", 0, "a"), {"heartbeats", "open"}),
        (("HINCRBY", 0, "a", 1), {"counters"}),
        (("XDEL", 0, "1-1"), {"tasks"}),
        (("XACK", 0, "generators", "1-1"), {"tasks"}),
        (("XREADGROUP", "GROUP", "generators", "x", "STREAMS", 0, "0"), {"tasks"}),
    ],
)
async def test_what_a_generator_may_run_it_may_run_on_its_own_keys_only(
    owner: redis.Redis, generator: redis.asyncio.Redis, command: tuple[Any, ...], writable: set[str]
) -> None:
    TaskIssuer(owner, KEYS)
    allowed = set()
    for name in EVERY_KEY:
        with contextlib.suppress(NoPermissionError):
            await raw(generator, *(getattr(KEYS, name) if word == 0 else word for word in command))
            allowed.add(name)
    assert allowed == writable
    with pytest.raises(NoPermissionError):
        await raw(generator, *("another:key" if word == 0 else word for word in command))


async def test_a_generator_cannot_send_the_learners_heartbeat(
    owner: redis.Redis, generator: redis.asyncio.Redis
) -> None:
    Heartbeats(owner, KEYS).send(heartbeat(Part.LEARNER, "learner", "training"))
    forged = heartbeat(Part.LEARNER, "learner", "failed").model_dump_json()
    await raw(generator, "HSET", KEYS.heartbeats, "learner", f"9999999999.0 {forged}")
    [(beat, _)] = Heartbeats(owner, KEYS).read_all()
    assert (beat.part_id, beat.state) == ("learner", "training")


async def test_events_of_generators_are_taken_over_into_the_runs_log(
    server: EmbeddedRedis, owner: redis.Redis, generator: redis.asyncio.Redis
) -> None:
    theirs = AsyncEventLog(generator, KEYS, of_generator=True)
    EventLog(owner, KEYS).append("learner", "published", weight_version=1)
    await theirs.append("generator-0", "failed", message="why")
    await theirs.append("services", "control", action="stop")
    await raw(generator, "XADD", KEYS.generator_events, "*", "a", "b")
    await theirs.append("generator-0", "failed", message="x" * MAX_EVENT_BYTES)
    client = await connect_async(server.url)
    assert await take_over_events_of_generators(client, KEYS) == 4
    found = [(event.source, event.kind) for event in await AsyncEventLog(client, KEYS).tail(9)]
    assert found == [("learner", "published"), ("generator-0", "failed"), *[("", MALFORMED)] * 3]
    assert owner.xlen(KEYS.generator_events) == 0
    await client.aclose()


def test_the_rules_name_every_command_of_the_generators_scripts() -> None:
    """A script that gets another command needs it in the rules; this says so before a generator fails."""
    granted = {command.partition("|")[0] for commands, _ in acl.ON_KEYS for command in commands} | set(acl.CONNECTION)
    used = {name.lower() for script in acl.SCRIPTS for name in re.findall(r"redis\.p?call\('(\w+)'", script)}
    assert used <= granted


def test_a_password_for_generators_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="password"):
        EmbeddedRedis(tmp_path, 1, "o" * 24, generator_password="x")
