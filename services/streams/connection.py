"""Connections to Redis, and the names of its keys.

    client = connect("redis://:secret@127.0.0.1:6379/0")   # answers, or UnavailableError within 10 s
    keys = Keys("run-7")
    keys.tasks                                              # "sept:{run-7}:tasks"

A client made here survives a server that goes away for less than `deadline_s`, or answers for less than that that it
cannot serve now (`NOT_NOW`): redis-py reconnects and repeats the command. So every command sent through it must be
idempotent.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as RedisAsyncRetry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry as RedisRetry

from services.errors import UnavailableError
from services.net import redis_address

SOCKET_TIMEOUT_S = 10.0
"""A server that is silent for this long counts as lost; above MAX_BLOCK_S, so that a blocking read is not."""
MAX_BLOCK_S = 2.0
"""Longest single blocking read; a longer wait is several of them, so that each sees what has changed since."""
MAX_CONNECTIONS = 32
"""Of one event-loop client."""
RETRY_BASE_S = 0.025
RETRY_CAP_S = 0.5
"""First and longest pause between two attempts to reconnect."""

NOT_NOW = {
    "READONLY": "the server is a read-only replica: let redis.url name the primary, or promote it (REPLICAOF NO ONE)",
    "OOM": "the server's memory is full: raise its maxmemory, or free memory there",
    "MISCONF": "the server cannot write its disk: free some space there",
    "LOADING": "the server still loads its data: wait for that, or raise deadlines.startup_s",
    "CLUSTERDOWN": "a part of the cluster is away: see `redis-cli cluster info`",
    "TRYAGAIN": "the cluster moves these keys: wait for that, see `redis-cli cluster info`",
    "MASTERDOWN": "the replica has lost its primary: start that, or let redis.url name the primary",
    "NOREPLICAS": "the server wants more replicas than it has: start them, or lower its min-replicas-to-write",
    "BUSY": "the server runs somebody's script: wait for its end, or stop it (SCRIPT KILL)",
    "NOSCRIPT": "the services load the scripts of generators: see whether they run, and are of the same release",
    "UNBLOCKED": "the server became a replica: let redis.url name the primary",
}
"""Error codes of a server that may serve the same command later -> what a person can do about the cause."""

OPTIONS: dict[str, Any] = {
    "decode_responses": False,
    "protocol": 2,  # the shapes of replies then do not depend on redis-py's release
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": SOCKET_TIMEOUT_S,
    "socket_keepalive": True,
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of a run's keys. The run id is a hash tag, so on a cluster they share a slot and scripts may join them."""

    run_id: str

    def _name(self, what: str) -> str:
        return f"sept:{{{self.run_id}}}:{what}"

    @property
    def tasks(self) -> str:
        """Stream: tasks that are queued or leased."""
        return self._name("tasks")

    @property
    def open(self) -> str:
        """Hash: task id -> entry id of every task in `tasks`."""
        return self._name("open")

    @property
    def incarnation(self) -> str:
        """String: random mark that is missing when Redis came back empty."""
        return self._name("incarnation")

    @property
    def epoch(self) -> str:
        """String: number of the learner that may write, see `services.streams.fence`."""
        return self._name("epoch")

    @property
    def refused(self) -> str:
        """Hash: generator id -> until when, and why, the learner takes nothing of it."""
        return self._name("refused")

    @property
    def counters(self) -> str:
        """Hash: running totals, "reissued" so far."""
        return self._name("counters")

    @property
    def rollouts(self) -> str:
        """Stream: finished rollouts that no durable checkpoint contains yet."""
        return self._name("rollouts")

    @property
    def dead_letters(self) -> str:
        """Stream: entries that could not be read or processed, with the reason."""
        return self._name("dead_letters")

    @property
    def heartbeats(self) -> str:
        """Hash: generator id -> its last heartbeat."""
        return self._name("heartbeats")

    @property
    def learner_heartbeats(self) -> str:
        """Hash: part id -> the last heartbeat of a part that is no generator; generators cannot write it."""
        return self._name("learner_heartbeats")

    @property
    def events(self) -> str:
        """Stream: what happened in the run, from all but generators."""
        return self._name("events")

    @property
    def generator_events(self) -> str:
        """Stream: what generators say that happened; they can write no other."""
        return self._name("generator_events")

    @property
    def generators_target(self) -> str:
        """String: how many generators there should be."""
        return self._name("generators_target")

    @property
    def control(self) -> str:
        """Hash: what people request besides, flags and versions."""
        return self._name("control")

    @property
    def ranks(self) -> str:
        """Start of the keys by which a learner of several processes meets (`services.streams.nodes`)."""
        return self._name("ranks")


_CODE = re.compile(r"(?:^|caused error: (?:\(')?|user_script:\d+: -?)([A-Z]{3,})\b")


class _NotNowError(RedisConnectionError):
    """An answer of `NOT_NOW`: redis-py repeats what failed with a connection error, on a new connection."""

    def __init__(self, code: str, answer: ResponseError) -> None:
        super().__init__(f"{code} {str(answer).removeprefix(code).strip()}", status_code=code)


def _later(error: Exception, *, loads_scripts: bool = True) -> Exception:
    """The error as one that is repeated, if it is an answer of `NOT_NOW`, or a script that others have to load."""
    if isinstance(error, NoScriptError) and not loads_scripts:
        return _NotNowError("NOSCRIPT", error)
    if not isinstance(error, ResponseError) or isinstance(error, _NotNowError):
        return error
    code = _code_of(error)
    return _NotNowError(code, error) if code in NOT_NOW and code != "NOSCRIPT" else error


def _code_of(error: Exception) -> str:
    """The server's error code, also of one that redis-py does not know, in a pipeline or in a script; else empty."""
    known = getattr(error, "status_code", None)
    found = _CODE.search(str(error))
    return str(known) if known else found[1] if found else ""


class _Patience:
    """How long a command may be repeated, and the error that ends it."""

    def __init__(self, address: str, deadline_s: float) -> None:
        self.address = address
        self.deadline_s = deadline_s
        self.loads_scripts = True
        """False for a user who runs scripts that others have loaded."""

    def check(self, error: Exception, started_at: float) -> None:
        """Raises UnavailableError once repeating is pointless: the deadline has passed or the password is wrong."""
        if isinstance(error, AuthenticationError | AuthorizationError):
            raise _refused(self.address, error) from error
        waited_s = time.monotonic() - started_at
        if waited_s >= self.deadline_s and (code := _code_of(error)) in NOT_NOW:
            raise UnavailableError(
                f"Redis at {self.address} could not serve this for {waited_s:.1f} s (limit {self.deadline_s:g} s): "
                f"{error}",
                hint=NOT_NOW[code],
            ) from error
        if waited_s >= self.deadline_s:
            raise UnavailableError(
                f"Redis at {self.address} did not answer for {waited_s:.1f} s (limit {self.deadline_s:g} s): {error}",
                hint="check that the server runs and that redis.url names it",
            ) from error


def _refused(address: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"Redis at {address} refuses the connection: {error}", hint="check the user and password in redis.url"
    )


# redis-py calls `fail` after every failed attempt, which makes it the place to end endless retries by time.
class _SyncRetry(RedisRetry):
    def __init__(self, patience: _Patience) -> None:
        super().__init__(ExponentialBackoff(cap=RETRY_CAP_S, base=RETRY_BASE_S), retries=-1)
        self._patience = patience

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **options: Any) -> T:
        started_at = time.monotonic()

        def attempt() -> T:
            try:
                return do()
            except ResponseError as error:
                raise _later(error) from error

        def failed(error: Exception, *counts: int) -> None:
            fail(error, *counts)
            self._patience.check(error, started_at)

        return super().call_with_retry(attempt, failed, *args, **options)


class _AsyncRetry(RedisAsyncRetry):
    def __init__(self, patience: _Patience) -> None:
        super().__init__(ExponentialBackoff(cap=RETRY_CAP_S, base=RETRY_BASE_S), retries=-1)
        self._patience = patience

    async def call_with_retry(self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started_at = time.monotonic()

        async def attempt() -> Any:
            try:
                return await do()
            except ResponseError as error:
                raise _later(error, loads_scripts=self._patience.loads_scripts) from error

        async def failed(error: Exception, *counts: int) -> None:
            await fail(error, *counts)
            self._patience.check(error, started_at)

        return await super().call_with_retry(attempt, failed, *args, **options)


class _Connection(redis.asyncio.Connection):
    """Packs commands in C, as redis-py's connections without asyncio do. (One by TLS or a file packs in Python.)"""

    _packer: ClassVar = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = self._packer.pack(*args)
        return packed


def connect(url: str, *, deadline_s: float = 10) -> redis.Redis:
    """A client that has been answered once.

    Raises:
        ConfigError: `url` is not a Redis address.
        UnavailableError: no answer within `deadline_s`, or a wrong password; later commands raise it likewise.
    """
    patience = _Patience(redis_address(url), deadline_s)
    with redis.Redis.from_url(url, retry=_SyncRetry(patience), **_probing(deadline_s)) as probe:
        try:
            probe.ping()
        except ResponseError as error:
            raise _refused(patience.address, error) from error
    return redis.Redis.from_url(url, retry=_SyncRetry(patience), **OPTIONS)


async def connect_async(url: str, *, deadline_s: float = 10) -> redis.asyncio.Redis:
    """As `connect`, for asyncio; close the client with `await client.aclose()`."""
    patience = _Patience(redis_address(url), deadline_s)
    async with redis.asyncio.Redis.from_url(url, retry=_AsyncRetry(patience), **_probing(deadline_s)) as probe:
        try:
            await probe.ping()
        except ResponseError as error:
            raise _refused(patience.address, error) from error
        patience.loads_scripts = await _may_load_scripts(probe)
    # A generator completes hundreds of tasks at a time: they queue for a connection rather than fail for want of one.
    pool: Any = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        connection_class=_Connection,
        max_connections=MAX_CONNECTIONS,
        timeout=deadline_s,
        retry=_AsyncRetry(patience),
        **OPTIONS,
    )
    return redis.asyncio.Redis.from_pool(pool)


async def _may_load_scripts(client: Any) -> bool:
    try:
        await client.script_load("return 1")
    except NoPermissionError:
        return False
    return True


async def why_no_writes(client: redis.asyncio.Redis) -> str:
    """Why the server, which answers, takes no writes now, with the remedy; empty when it does, or does not say."""
    untyped: Any = client
    try:
        info = await untyped.info()
    except ResponseError:  # a user who may not ask
        return ""
    limit = int(info.get("maxmemory", 0))
    found = (
        ("LOADING", bool(info.get("loading"))),
        ("READONLY", info.get("role") == "slave"),
        ("OOM", 0 < limit <= int(info.get("used_memory", 0))),
        ("MISCONF", info.get("aof_last_write_status", "ok") != "ok"),
    )
    return next((f"Redis takes no writes ({code}): {NOT_NOW[code]}" for code, is_so in found if is_so), "")


def is_cancelled() -> bool:
    """Whether the current task is to end, for loops that are ended by cancelling.

    Before Python 3.12, what awaits under a timeout (redis-py's reads do) may swallow a CancelledError that comes in the
    instant in which its wait is over, so such a loop has to look itself.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def block_ms(seconds: float) -> int:
    """Milliseconds for BLOCK, at most MAX_BLOCK_S; never 0, which would mean forever."""
    return max(1, round(min(seconds, MAX_BLOCK_S) * 1000))


def _probing(deadline_s: float) -> dict[str, Any]:
    """Options of the first contact, which blocks on nothing and so need not be as patient as a blocking read."""
    timeout_s = max(0.05, min(deadline_s, SOCKET_TIMEOUT_S))
    return OPTIONS | {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
