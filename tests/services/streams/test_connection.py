"""Reaching Redis: promptly, or with an error that names it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from services.errors import ConfigError, UnavailableError
from services.net import free_port
from services.streams.connection import (
    MAX_BLOCK_S,
    SOCKET_TIMEOUT_S,
    Keys,
    _code_of,
    block_ms,
    connect,
    connect_async,
)
from services.streams.embedded import EmbeddedRedis
from tests.support.certificates import make_certificate

PASSWORD = "correct-horse-battery"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server with a password."""
    server = EmbeddedRedis(tmp_path / "redis", free_port(), PASSWORD)
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    yield server
    process.kill()
    process.wait()


def test_answers_with_bytes(redis_url: str) -> None:
    with connect(redis_url) as client:
        client.set("greeting", "hello")
        assert client.get("greeting") == b"hello"


async def test_answers_with_bytes_in_an_event_loop(redis_url: str) -> None:
    async with await connect_async(redis_url) as client:
        await client.set("greeting", "hello")
        assert await client.get("greeting") == b"hello"


def test_nobody_there_fails_by_its_deadline_and_hides_the_password() -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/3"
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+/3 did not answer") as caught:
        connect(url, deadline_s=0.2)
    assert PASSWORD not in str(caught.value)
    assert caught.value.hint


async def test_any_number_of_commands_at_once_queue_for_a_connection(redis_url: str) -> None:
    async with await connect_async(redis_url) as client:
        scripts: list[Any] = [client.eval("return 1", 0) for _ in range(500)]
        assert await asyncio.gather(*scripts) == [1] * 500


async def test_nobody_there_fails_by_its_deadline_in_an_event_loop() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(UnavailableError, match="did not answer"):
            await connect_async(f"redis://127.0.0.1:{free_port()}", deadline_s=0.2)


def test_a_peer_that_accepts_and_never_speaks_fails_by_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UnavailableError, match="did not answer"):
        connect(f"redis://127.0.0.1:{mute.getsockname()[1]}", deadline_s=0.2)


def test_waits_for_a_server_that_is_still_starting(guarded: EmbeddedRedis) -> None:
    with connect(guarded.url) as client:
        assert client.ping()


async def test_a_wrong_password_is_refused_at_once(guarded: EmbeddedRedis) -> None:
    connect(guarded.url).close()
    wrong = guarded.url.replace(PASSWORD, "wrong-wrong-wrong-wrong")
    for url in (wrong, f"redis://127.0.0.1:{guarded.port}/0"):
        with pytest.raises(UnavailableError, match="refuses") as caught:
            connect(url, deadline_s=60)
        assert "wrong-wrong" not in str(caught.value)
        with pytest.raises(UnavailableError, match="refuses"):
            await connect_async(url, deadline_s=60)


def test_commands_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port(), PASSWORD)
    first = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    client = connect(server.url)
    client.set("kept", "yes")
    first.terminate()
    first.wait(timeout=10)
    replies: list[object] = []
    asking = threading.Thread(target=lambda: replies.append(client.get("kept")))
    asking.start()  # while nobody listens
    second = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    asking.join(timeout=10)
    client.close()
    second.kill()
    second.wait()
    assert replies == [b"yes"]


def refused_commands(client: redis.Redis, code: str) -> int:
    """How many commands the server has refused with this code."""
    counts: dict[str, dict[str, int]] = client.info("errorstats")
    return counts.get(f"errorstat_{code}", {}).get("count", 0)


Cause = tuple[str, Callable[[redis.Redis], object], Callable[[redis.Redis], object]]
READONLY: Cause = ("READONLY", lambda c: c.replicaof("127.0.0.1", 1), lambda c: c.replicaof("NO", "ONE"))
OOM: Cause = ("OOM", lambda c: c.config_set("maxmemory", 1), lambda c: c.config_set("maxmemory", 0))
NOREPLICAS: Cause = (
    "NOREPLICAS",
    lambda c: c.config_set("min-replicas-to-write", 1),
    lambda c: c.config_set("min-replicas-to-write", 0),
)


def write_in_pipeline(client: redis.Redis, *, transaction: bool) -> None:
    pipe = client.pipeline(transaction=transaction)
    pipe.set("kept", "yes")
    pipe.execute()


SCRIPT = "return redis.call('SET', KEYS[1], 'yes')"
WRITES: list[Callable[[redis.Redis], object]] = [
    lambda client: client.set("kept", "yes"),
    lambda client: client.eval(SCRIPT, 1, "kept"),
    lambda client: write_in_pipeline(client, transaction=False),
    lambda client: write_in_pipeline(client, transaction=True),
]


@pytest.mark.parametrize("cause", [READONLY, OOM, NOREPLICAS], ids=lambda cause: cause[0])
@pytest.mark.parametrize("write", WRITES, ids=["command", "script", "pipeline", "transaction"])
def test_a_server_that_cannot_serve_now_is_waited_for(
    guarded: EmbeddedRedis, cause: Cause, write: Callable[[redis.Redis], object]
) -> None:
    code, begin, end = cause
    with connect(guarded.url, deadline_s=30) as client, redis.Redis.from_url(guarded.url) as admin:
        begin(admin)
        writing = threading.Thread(target=write, args=(client,))
        writing.start()
        deadline = time.monotonic() + 20
        while refused_commands(admin, code) == 0:
            assert time.monotonic() < deadline, "the command was not refused"
        end(admin)
        writing.join(timeout=20)
        assert client.get("kept") == b"yes"


@pytest.mark.parametrize("write", WRITES, ids=["command", "script", "pipeline", "transaction"])
def test_one_that_stays_so_is_named_with_the_remedy(
    guarded: EmbeddedRedis, write: Callable[[redis.Redis], object]
) -> None:
    connect(guarded.url).close()  # it has started
    with connect(guarded.url, deadline_s=0.2) as client, redis.Redis.from_url(guarded.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        with pytest.raises(UnavailableError, match=r"could not serve this for .*READONLY") as caught:
            write(client)
        assert "REPLICAOF NO ONE" in caught.value.hint
        assert PASSWORD not in str(caught.value)


async def test_one_that_stays_so_is_named_in_an_event_loop(guarded: EmbeddedRedis) -> None:
    connect(guarded.url).close()  # it has started
    async with await connect_async(guarded.url, deadline_s=0.2) as client:
        await client.config_set("maxmemory", 1)
        with pytest.raises(UnavailableError, match="OOM") as caught:
            await client.set("kept", "yes")
        assert "maxmemory" in caught.value.hint


def test_a_mistake_is_not_repeated(redis_url: str) -> None:
    with connect(redis_url, deadline_s=60) as client:
        client.set("text", "yes")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            client.lpush("text", "x")
        with pytest.raises(ResponseError, match="Unknown command"):
            client.eval("return redis.call('NONSENSE')", 0)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", "MISCONF"),
        ("Command # 1 (SET a b) of pipeline caused error: ('MISCONF Errors writing',)", "MISCONF"),
        ("Command # 1 (SET a b) of pipeline caused error: MISCONF Errors writing", "MISCONF"),
        ("Error running script (call to f_1): @user_script:1: -READONLY You can't write", "READONLY"),
        ("value is not an integer", ""),
    ],
)
def test_codes_that_the_library_does_not_know_are_read(said: str, code: str) -> None:
    assert _code_of(ResponseError(said)) == code


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:6379", "http://host:1", "redis://", "redis://:pw@host:port", "redis://:pw@[::1", "redis://h:99999"],
)
def test_what_is_no_address_is_a_config_error_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url") as caught:
        connect(url)
    assert "pw" not in str(caught.value).replace("[:password@]", "")


def test_a_blocking_read_never_lasts_forever_or_beyond_the_socket() -> None:
    assert block_ms(0.0001) == 1
    assert block_ms(3600) == MAX_BLOCK_S * 1000 < SOCKET_TIMEOUT_S * 1000


def test_all_keys_of_a_run_share_one_hash_tag() -> None:
    keys = Keys("run-7")
    names = [keys.tasks, keys.open, keys.incarnation, keys.counters, keys.rollouts, keys.dead_letters]
    names += [keys.heartbeats, keys.events, keys.generators_target, keys.control]
    assert len(set(names)) == 10
    assert all(name.startswith("sept:{run-7}:") for name in names)


def test_redis_is_reached_over_tls_and_its_certificate_is_checked(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    cert, key = make_certificate(tmp_path, "localhost")
    port = free_port()
    options = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    options += ["--tls-auth-clients", "no", "--requirepass", PASSWORD, "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        with connect(f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={cert}") as client:
            assert client.ping()
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            connect(f"rediss://:{PASSWORD}@localhost:{port}/0", deadline_s=0.2)
    finally:
        process.kill()
        process.wait()
