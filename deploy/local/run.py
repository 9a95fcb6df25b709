"""`sept run`: one run on this machine, from its settings to its end. Wires; the supervisor and the parts work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from typing import Any

from rich.console import Console

from deploy import endpoints, placement
from deploy.endpoints import Endpoints
from deploy.local.desired_state import DesiredInRedis, last_events
from deploy.local.event_log import Journal, write_flight_record
from deploy.local.processes import Spec, sweep
from deploy.local.supervisor import Plan, Supervisor
from deploy.locks import run_lock
from deploy.operate.client import RunClient
from deploy.operate.progress import Progress
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, Settings, require, write_resolved
from services.errors import SeptError, UnavailableError
from services.net import LOOPBACK, free_port, port_of, reachable_url, why_not_free
from services.run_folder import RunFolder
from services.streams.embedded import EmbeddedRedis

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


LEADERS = {"learner": ("model.path", "data.path"), "evaluator": ("model.path", "evaluation.benchmarks")}
"""The parts that a run can be about, whose end is the run's end, and the settings that each cannot do without."""


async def run_local(settings: Settings, console: Console, *, leader: str = "learner") -> signal.Signals | None:
    """Run everything on this machine until the `leader` has finished; resumes what the run folder holds.

    Returns the signal that stopped it, None when the run is complete. A run that fails leaves a flight record.
    """
    require(settings, *LEADERS[leader])
    folder = RunFolder(settings.run.dir.resolve()).create()
    with run_lock(folder.path):
        swept = sweep(folder.path)
        changed = write_resolved(settings, folder.config)
        redis, where = _place(settings, folder)
        endpoints.write(folder, where)
        try:
            async with RunClient(where) as client:
                with Progress(folder, client, console) as progress:
                    journal = Journal(folder.logs / "supervisor.log", progress.note)
                    journal.note("run_starting", folder=str(folder.path), run_id=folder.run_id)
                    if swept:
                        journal.note("leftovers_killed", processes=len(swept))
                    if changed:
                        journal.note("settings_changed", keys=",".join(changed))
                    plan = make_plan(settings, folder, redis, where, leader=leader)
                    return await _supervise(plan, settings, folder, where, journal, progress)
        finally:
            endpoints.remove(folder)


async def _supervise(
    plan: Plan,
    settings: Settings,
    folder: RunFolder,
    where: Endpoints,
    journal: Journal,
    progress: Progress,
) -> signal.Signals | None:
    shared: list[dict[str, Any]] = []

    async def last_look() -> None:
        shared.extend(await last_events(where.redis_url, folder.run_id))

    supervisor = Supervisor(
        plan,
        run=folder.path,
        desired=DesiredInRedis(where.redis_url, folder.run_id, settings.generator.count, settings.deadlines.startup_s),
        journal=journal,
        drain_s=settings.deadlines.drain_s,
        last_look=last_look,
    )
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, supervisor.request_stop, number)
    follower = asyncio.create_task(progress.follow())
    try:
        return await supervisor.run()
    except SeptError as error:
        record = write_flight_record(folder, journal, str(error), shared)
        journal.note("flight_record_written", path=str(record))
        raise
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        await progress.refresh()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def make_plan(
    settings: Settings, folder: RunFolder, redis: EmbeddedRedis | None, where: Endpoints, *, leader: str = "learner"
) -> Plan:
    """The commands of all parts, each with its log and its share of the machine."""
    gpus, cores = placement.visible_gpus(), len(os.sched_getaffinity(0))
    count, ranks = max(1, settings.generator.count), settings.training.ranks

    def part(name: str, command: tuple[str, ...], env: dict[str, str]) -> Spec:
        return Spec(name, command, folder.logs / f"{name}.log", {**inherited_environment(), **env})

    def sept(command: str, *more: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "sept", command, "--config", str(folder.config), *more)

    def generator(index: int) -> Spec:
        name = f"generator-{index}"
        tensor_parallel = settings.generator.tensor_parallel
        env = placement.generator_env(index, gpus, count, cores, tensor_parallel=tensor_parallel, ranks=ranks)
        return part(name, sept("generator", "--id", name), env)

    port = port_of(where.services_url) or settings.services.port
    return Plan(
        redis=part("redis", tuple(redis.command()), {}) if redis is not None else None,
        services=part("services", sept("services", "--set", f"services.port={port}"), {}),
        learner=part(leader, sept(leader), placement.learner_env(gpus, count, cores, ranks=ranks)),
        generator=generator,
        generators=settings.generator.count,
    )


def inherited_environment() -> dict[str, str]:
    """This process's environment without settings: the resolved config holds those, --set included."""
    return {
        name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and ENV_DELIMITER in name)
    }


def _place(settings: Settings, folder: RunFolder) -> tuple[EmbeddedRedis | None, Endpoints]:
    """Decide where Redis and the services listen; where this run listened before, if that is free again."""
    before = endpoints.read(folder)
    port = settings.services.port or _port_of(before.services_url if before else None, settings.services.host)
    if why_not_free(settings.services.host, port):
        raise UnavailableError(
            f"services.port {port} on {settings.services.host} is taken by another program",
            hint="stop that program, or set services.port to another port (0 takes a free one)",
        )
    token = settings.services.token.get_secret_value() if settings.services.token else None
    url = settings.services.url or reachable_url(settings.services.host, port)
    if settings.redis.url is not None:
        return None, Endpoints(redis_url=settings.redis.url.get_secret_value(), services_url=url, token=token)
    redis_port = _port_of(before.redis_url if before else None, LOOPBACK)
    redis = EmbeddedRedis(folder.redis, redis_port, secrets.token_urlsafe(24))
    return redis, Endpoints(redis_url=redis.url, services_url=url, token=token)


def _port_of(url: str | None, host: str) -> int:
    """The URL's port if it is free, else a free one."""
    port = port_of(url) if url is not None else None
    return port if port is not None and not why_not_free(host, port) else free_port()
