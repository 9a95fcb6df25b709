"""Builds a generator and runs it until SIGTERM; appends to the run's events why it failed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import zlib
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from generator.config import GeneratorConfig
from generator.engines.base import Engine
from generator.engines.create import create_engine
from generator.loop import SIGN_OFF_S, Generator
from generator.versions import wait_for_first_version
from services.config import DeadlinesConfig
from services.errors import SeptError, UnavailableError
from services.run_folder import RunIdentity
from services.streams.connection import Keys, connect_async
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.tasks import TaskLeaser
from services.time_accounting import StateClock
from services.weights.client import WeightClient
from services.weights.host_downloads import HostDownloads
from services.weights.mirror import WeightMirror

DOWNLOADS, COPIES = ".downloads", ".copies"
"""Folders beside the generators' mirrors, for what those of one host fetch once and for what they know of the copy in
memory that they share."""
SAME_STOP_S = 1.0
"""Signals this close together are one request: systemd sends its own to a part that the supervisor stops, too."""


@dataclass(frozen=True, slots=True)
class Peers:
    """How a generator reaches the rest of the run."""

    redis_url: str
    services_url: str
    token: str | None
    lease_s: float
    identity: RunIdentity | None = None
    """The run that must answer there; None: whichever does."""
    tls_cert: Path | None = None
    """Certificate of the services that is trusted besides the system's."""


async def run_generator(
    generator_id: str,
    *,
    peers: Peers,
    config: GeneratorConfig,
    max_model_len: int,
    deadlines: DeadlinesConfig,
    cache: Path,
) -> None:
    """Join a run as one generator and serve it until SIGTERM or SIGINT; a second signal stops at once.

    `max_model_len` is the longest prompt plus response of the run, in tokens.
    """
    create = partial(create_engine, config, max_model_len=max_model_len, seed=_seed(generator_id), cache=cache)
    clock = StateClock("starting")
    async with WeightClient(
        peers.services_url,
        peers.token,
        deadline_s=deadlines.startup_s,
        identity=peers.identity,
        tls_cert=peers.tls_cert,
    ) as client:
        engine, manifest = await asyncio.gather(
            asyncio.to_thread(create),
            wait_for_first_version(client, deadlines.startup_s),
        )
        redis = await connect_async(peers.redis_url, deadline_s=deadlines.startup_s)
        keys = Keys(manifest.run_id)
        downloads = HostDownloads(cache.parent / DOWNLOADS, client)
        mirror = WeightMirror(cache, client, downloads, cache.parent / COPIES)
        generator = Generator(
            generator_id,
            engine,
            mirror,
            client,
            TaskLeaser(redis, keys, generator_id, peers.lease_s),
            AsyncHeartbeats(redis, keys),
            AsyncEventLog(redis, keys, of_generator=True),
            config=config,
            deadlines=deadlines,
            lease_s=peers.lease_s,
            clock=clock,
            chat=partial(_open_chat, engine, config, manifest.run_id, peers.token),
        )
        _stop_on_signals(generator)
        try:
            await generator.run(manifest)
        except BaseExceptionGroup as group:
            # one failure cancels the other coroutines; the first error is the cause
            error = _first_error(group)
            await _report_failure(AsyncEventLog(redis, keys, of_generator=True), generator_id, error)
            raise error from group
        finally:
            mirror.close()
            await redis.aclose()


def _open_chat(
    engine: Engine, config: GeneratorConfig, run_id: str, token: str | None
) -> AbstractAsyncContextManager[str]:
    """The chat server on `config.chat`, or nothing; the settings allow it with vLLM only."""
    if not config.chat:
        return nullcontext("")
    from generator.chat import chat_slots, open_chat

    slots = chat_slots(config.max_in_flight)
    return open_chat(engine, run_id, address=config.chat, slots=slots, token=token)


async def _report_failure(events: AsyncEventLog, generator_id: str, error: BaseException) -> None:
    """Append to the run's events why this generator ends."""
    message = error.message if isinstance(error, SeptError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(UnavailableError, TimeoutError):
        async with asyncio.timeout(SIGN_OFF_S):
            await events.append(generator_id, "failed", message=message)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first


def _seed(generator_id: str) -> int:
    """Differs between generators, so that they do not sample alike; the same when one restarts."""
    return zlib.crc32(generator_id.encode())


def _stop_on_signals(generator: Generator) -> None:
    """The first SIGTERM or SIGINT drains; one that comes later than `SAME_STOP_S` after it ends the process."""
    loop = asyncio.get_running_loop()
    asked_at: list[float] = []

    def stop(number: signal.Signals) -> None:
        if not asked_at:
            asked_at.append(loop.time())
            generator.drain()
        elif loop.time() - asked_at[0] >= SAME_STOP_S:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
