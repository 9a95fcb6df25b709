"""`sept run`: one run on this machine, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from dataclasses import replace
from typing import Any

from rich.console import Console

from deploy import endpoints, placement
from deploy.endpoints import Endpoints
from deploy.local.flight_record import last_part_events, write_flight_record
from deploy.local.generators_target import GeneratorsTargetInRedis
from deploy.local.processes import ProcessSpec, kill_leftovers
from deploy.local.supervised_part import RestartPolicy
from deploy.local.supervisor import RunPlan, Supervisor
from deploy.local.supervisor_log import SupervisorLog
from deploy.local.work_reports import WorkReports
from deploy.locks import run_lock
from deploy.operate.client import RunClient
from deploy.operate.ending import ending
from deploy.operate.page_address import page_lines
from deploy.operate.progress import Progress
from deploy.resolved_settings import takes_effect, write_resolved
from deploy.same_code import sept_command, with_same_code
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, FIXED_IN_A_RUN, Settings, require, token_of
from learner.input_checks import check_inputs
from services.api.status import rounds_total
from services.errors import ConfigError, SeptError, UnavailableError
from services.net import LOOPBACK, free_port, port_of, reachable_url, why_not_free
from services.run_folder import RunFolder
from services.streams.embedded import EmbeddedRedis

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What drains a run: Ctrl-C, `kill`, and the loss of the terminal unless nohup ignores it."""

LEADERS = {"learner": ("model.path", "data.path"), "evaluator": ("model.path", "evaluation.benchmarks")}
"""The part whose end is the run's end -> the settings that it cannot do without."""


async def run_local(settings: Settings, console: Console, *, leader: str = "learner") -> signal.Signals | None:
    """Run everything on this machine until the `leader` has finished; resumes the run that the folder holds.

    Returns the signal that stopped it, None when the run is complete. A run that fails leaves a flight record.
    """
    require(settings, *LEADERS[leader])
    check_inputs(settings, leader=leader)
    folder = RunFolder(settings.run.dir.resolve()).create()
    with run_lock(folder):
        killed = kill_leftovers(folder.path)
        begun = folder.has_begun
        changed = write_resolved(settings, folder.config, begun=begun)
        if not begun and set(changed) & set(FIXED_IN_A_RUN):
            folder.start_over()
        if leader == "learner" and _is_finished(settings, folder, changed):
            lines = ending(folder)
            console.print(*lines, "train on: raise training.rounds or training.epochs", sep="\n", highlight=False)
            return None
        redis, where, port = _choose_endpoints(settings, folder)
        endpoints.write(folder, where)
        nearby = where.model_copy(update={"services_url": reachable_url(settings.services.host, port)})
        try:
            async with RunClient(nearby, of_run=folder) as client:
                with Progress(folder, client, console) as progress:
                    log = SupervisorLog(folder.log_of("supervisor"), progress.note)
                    log.record("run_starting", folder=str(folder.path), run_id=folder.run_id)
                    progress.tell(page_lines(where))
                    if killed:
                        log.record("leftovers_killed", processes=len(killed))
                    for key in changed:
                        log.record("settings_changed", key=key, takes_effect=takes_effect(key))
                    plan = plan_run(settings, folder, redis, port, leader=leader)
                    stopped_by = await _supervise(plan, settings, folder, where, log, progress)
                    if stopped_by is None:
                        _note_surplus(folder, log)
                    if leader == "learner":
                        progress.tell(ending(folder))
                    return stopped_by
        finally:
            endpoints.remove(folder, where)


def _is_finished(settings: Settings, folder: RunFolder, changed: list[str]) -> bool:
    """Whether there is nothing to train or to evaluate, as far as that is known without reading the prompts."""
    done = max(folder.checkpointed(), default=0)
    total = settings.training.rounds or (0 if changed else rounds_total(folder.identity))
    evaluated = not settings.evaluation.every_rounds or folder.evaluation_of(done).results.exists()
    return 0 < total == done and evaluated


def _note_surplus(folder: RunFolder, log: SupervisorLog) -> None:
    """Say so when the run had more rounds already than it is to have now."""
    done, total = max(folder.checkpointed(), default=0), rounds_total(folder.identity)
    if done > total > 0:
        log.record(
            "nothing_left_to_train",
            rounds_done=done,
            rounds_total=total,
            remedy="raise training.rounds or training.epochs",
        )


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
    reports = WorkReports(folder, where.redis_url)
    supervisor = Supervisor(
        plan,
        run=folder.path,
        generators_target=GeneratorsTargetInRedis(where.redis_url, folder.run_id, count, startup_s),
        log=log,
        drain_s=settings.deadlines.drain_s,
        before_drain_of_failed=read_part_events,
        has_worked=reports.has_worked,
        is_ready=reports.is_ready,
        policy=RestartPolicy(outlast_s=startup_s, ready_s=2 * startup_s),
    )
    loop = asyncio.get_running_loop()
    stop_signals = [number for number in STOP_SIGNALS if not _is_ignored_hang_up(number)]
    for number in stop_signals:
        loop.add_signal_handler(number, supervisor.request_stop, number)
    followers = [asyncio.create_task(progress.follow()), asyncio.create_task(reports.follow())]
    try:
        return await supervisor.run()
    except SeptError as error:
        record = write_flight_record(folder, log, str(error), part_events)
        log.record("flight_record_written", path=str(record))
        raise
    finally:
        for follower in followers:
            follower.cancel()
        await asyncio.gather(
            *followers, return_exceptions=True
        )  # what they show or read does not decide how a run ends
        with contextlib.suppress(OSError):
            await progress.refresh()
        for number in stop_signals:
            loop.remove_signal_handler(number)


def _is_ignored_hang_up(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def plan_run(
    settings: Settings, folder: RunFolder, redis: EmbeddedRedis | None, services_port: int, *, leader: str = "learner"
) -> RunPlan:
    """The commands of all parts, each with its log and its share of the machine."""
    gpus, cores = placement.visible_gpus(), len(os.sched_getaffinity(0))
    count, ranks = max(1, settings.generator.count), settings.training.ranks

    def part(name: str, command: tuple[str, ...], env: dict[str, str]) -> ProcessSpec:
        return ProcessSpec(name, command, folder.log_of(name), {**inherited_environment(), **env})

    def sept(command: str, *more: str) -> tuple[str, ...]:
        return sept_command(command, "--config", str(folder.config), *more)

    def generator(index: int) -> ProcessSpec:
        name = f"generator-{index}"
        tensor_parallel = settings.generator.tensor_parallel
        env = placement.generator_env(index, gpus, count, cores, tensor_parallel=tensor_parallel, ranks=ranks)
        return part(name, sept("generator", "--id", name), env)

    return RunPlan(
        redis=replace(part("redis", tuple(redis.command()), {}), mend=redis.set_aside_damaged)
        if redis is not None
        else None,
        services=part("services", sept("services", "--set", f"services.port={services_port}"), {}),
        learner=part(leader, sept(leader), placement.learner_env(gpus, count, cores, ranks=ranks)),
        generator=generator,
        generators_target=settings.generator.count,
    )


def inherited_environment() -> dict[str, str]:
    """This process's environment without settings: the resolved config holds them, those of --set too."""
    return with_same_code(
        {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith(ENV_PREFIX) and ENV_DELIMITER in name)
        }
    )


def _choose_endpoints(settings: Settings, folder: RunFolder) -> tuple[EmbeddedRedis | None, Endpoints, int]:
    """The server of Redis, all addresses and the services' port: as this run had them before where they are free."""
    try:
        before = endpoints.read(folder)
    except ConfigError:
        before = None  # this supervisor holds the lock, so the file is one that another left
    last_url = before.services_url if before and settings.services.url is None else None
    port = settings.services.port or _port_of(last_url, settings.services.host)
    if why_not_free(settings.services.host, port):
        raise UnavailableError(
            f"services.port {port} on {settings.services.host} is taken by another program",
            hint="stop that program, or set services.port to another port (0 takes a free one)",
        )
    token = token_of(settings)
    url = settings.services.url or reachable_url(settings.services.host, port)
    if settings.redis.url is not None:
        return None, Endpoints(redis_url=settings.redis.url.get_secret_value(), services_url=url, token=token), port
    redis_port = _port_of(before.redis_url if before else None, LOOPBACK)
    redis = EmbeddedRedis(folder.redis, redis_port, secrets.token_urlsafe(24))
    return redis, Endpoints(redis_url=redis.url, services_url=url, token=token), port


def _port_of(url: str | None, host: str) -> int:
    """The URL's port if it is free, else a free one."""
    port = port_of(url) if url is not None else None
    return port if port is not None and not why_not_free(host, port) else free_port()
