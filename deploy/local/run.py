"""`sept run`: one run on this machine, from its settings to its end."""

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
from deploy.local.flight_record import last_part_events, write_flight_record
from deploy.local.generators_target import GeneratorsTargetInRedis
from deploy.local.processes import ProcessSpec, kill_leftovers
from deploy.local.supervisor import RunPlan, Supervisor
from deploy.local.supervisor_log import SupervisorLog
from deploy.locks import run_lock
from deploy.operate.client import RunClient
from deploy.operate.progress import Progress
from deploy.resolved_settings import write_resolved
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, Settings, require, token_of
from services.errors import SeptError, UnavailableError
from services.net import LOOPBACK, free_port, port_of, reachable_url, why_not_free
from services.run_folder import RunFolder
from services.streams.embedded import EmbeddedRedis

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LEADERS = {"learner": ("model.path", "data.path"), "evaluator": ("model.path", "evaluation.benchmarks")}
"""The part whose end is the run's end -> the settings that it cannot do without."""


async def run_local(settings: Settings, console: Console, *, leader: str = "learner") -> signal.Signals | None:
    """Run everything on this machine until the `leader` has finished; resumes the run that the folder holds.

    Returns the signal that stopped it, None when the run is complete. A run that fails leaves a flight record.
    """
    require(settings, *LEADERS[leader])
    folder = RunFolder(settings.run.dir.resolve()).create()
    with run_lock(folder):
        killed = kill_leftovers(folder.path)
        changed = write_resolved(settings, folder.config)
        redis, where = _choose_endpoints(settings, folder)
        endpoints.write(folder, where)
        try:
            async with RunClient(where) as client:
                with Progress(folder, client, console) as progress:
                    log = SupervisorLog(folder.log_of("supervisor"), progress.note)
                    log.record("run_starting", folder=str(folder.path), run_id=folder.run_id)
                    if killed:
                        log.record("leftovers_killed", processes=len(killed))
                    if changed:
                        log.record("settings_changed", keys=",".join(changed))
                    plan = plan_run(settings, folder, redis, where, leader=leader)
                    return await _supervise(plan, settings, folder, where, log, progress)
        finally:
            endpoints.remove(folder)


async def _supervise(
    plan: RunPlan,
    settings: Settings,
    folder: RunFolder,
    where: Endpoints,
    log: SupervisorLog,
    progress: Progress,
) -> signal.Signals | None:
    part_events: list[dict[str, Any]] = []

    async def read_part_events() -> None:
        part_events.extend(await last_part_events(where.redis_url, folder.run_id))

    count, startup_s = settings.generator.count, settings.deadlines.startup_s

    supervisor = Supervisor(
        plan,
        run=folder.path,
        generators_target=GeneratorsTargetInRedis(where.redis_url, folder.run_id, count, startup_s),
        log=log,
        drain_s=settings.deadlines.drain_s,
        before_drain_of_failed=read_part_events,
    )
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, supervisor.request_stop, number)
    follower = asyncio.create_task(progress.follow())
    try:
        return await supervisor.run()
    except SeptError as error:
        record = write_flight_record(folder, log, str(error), part_events)
        log.record("flight_record_written", path=str(record))
        raise
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        await progress.refresh()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def plan_run(
    settings: Settings, folder: RunFolder, redis: EmbeddedRedis | None, where: Endpoints, *, leader: str = "learner"
) -> RunPlan:
    """The commands of all parts, each with its log and its share of the machine."""
    gpus, cores = placement.visible_gpus(), len(os.sched_getaffinity(0))
    count, ranks = max(1, settings.generator.count), settings.training.ranks

    def part(name: str, command: tuple[str, ...], env: dict[str, str]) -> ProcessSpec:
        return ProcessSpec(name, command, folder.log_of(name), {**inherited_environment(), **env})

    def sept(command: str, *more: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "sept", command, "--config", str(folder.config), *more)

    def generator(index: int) -> ProcessSpec:
        name = f"generator-{index}"
        tensor_parallel = settings.generator.tensor_parallel
        env = placement.generator_env(index, gpus, count, cores, tensor_parallel=tensor_parallel, ranks=ranks)
        return part(name, sept("generator", "--id", name), env)

    port = port_of(where.services_url) or settings.services.port
    return RunPlan(
        redis=part("redis", tuple(redis.command()), {}) if redis is not None else None,
        services=part("services", sept("services", "--set", f"services.port={port}"), {}),
        learner=part(leader, sept(leader), placement.learner_env(gpus, count, cores, ranks=ranks)),
        generator=generator,
        generators_target=settings.generator.count,
    )


def inherited_environment() -> dict[str, str]:
    """This process's environment without settings: the resolved config holds them, those of --set too."""
    return {
        name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and ENV_DELIMITER in name)
    }


def _choose_endpoints(settings: Settings, folder: RunFolder) -> tuple[EmbeddedRedis | None, Endpoints]:
    """Where Redis and the services will listen: where this run listened before, if that is still free."""
    before = endpoints.read(folder)
    port = settings.services.port or _port_of(before.services_url if before else None, settings.services.host)
    if why_not_free(settings.services.host, port):
        raise UnavailableError(
            f"services.port {port} on {settings.services.host} is taken by another program",
            hint="stop that program, or set services.port to another port (0 takes a free one)",
        )
    token = token_of(settings)
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
