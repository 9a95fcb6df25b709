"""`sept run`: one run on this machine, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from dataclasses import replace
from typing import Any

from rich.console import Console

from deploy import endpoints
from deploy.endpoints import Endpoints
from deploy.engine_question import ask_about_model
from deploy.local.flight_record import last_part_events, write_flight_record
from deploy.local.generators_target import GeneratorsTargetInRedis
from deploy.local.plan import plan_run
from deploy.local.processes import kill_leftovers
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
from deploy.run_memory import memory_of_run, place_parts
from deploy.settings import FIXED_IN_A_RUN, Settings, require, token_of
from learner.input_checks import check_inputs
from services.errors import ConfigError, SeptError, UnavailableError
from services.net import LOOPBACK, free_port, hostname_of, is_loopback, port_of, reachable_url, why_not_free
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
    _check_other_nodes_can_join(settings)
    placement = place_parts(settings, leader=leader)
    memory = memory_of_run(settings, placement, leader=leader)
    folder = RunFolder(settings.run.dir.resolve()).create()
    with run_lock(folder):
        killed = kill_leftovers(folder.path)
        begun = folder.has_begun
        changed = write_resolved(settings, folder.config, begun=begun)
        if not begun and set(changed) & set(FIXED_IN_A_RUN):
            folder.start_over()
        if leader == "learner" and _is_finished(settings, folder, changed):
            lines = ending(folder)
            lines.append("train on: raise training.rounds or training.epochs")
            console.print(*lines, sep="\n", highlight=False, soft_wrap=True)
            return None
        redis, where, port = _choose_endpoints(settings, folder)
        endpoints.write(folder, where)
        at = reachable_url(settings.services.host, port, tls=settings.services.tls_key is not None)
        nearby = where.model_copy(update={"services_url": at})
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
                    plan = plan_run(settings, folder, redis, port, placement, memory, leader=leader)
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
    total = settings.training.rounds or (0 if changed else folder.rounds_total)
    evaluated = not settings.evaluation.every_rounds or folder.evaluation_of(done).results.exists()
    return 0 < total == done and evaluated


def _check_other_nodes_can_join(settings: Settings) -> None:
    """ConfigError when the learner waits for other hosts that reach neither Redis nor the services of this one."""
    nodes, url = settings.training.nodes, settings.redis.url
    if nodes > 1 and (url is None or is_loopback(hostname_of(url.get_secret_value()))):
        raise ConfigError(
            f"training.nodes is {nodes}, and redis.url is {'not set' if url is None else 'an address of loopback'}: "
            "the other hosts of the learner cannot reach it",
            hint="start a Redis with a password on this host's address, and set "
            "SEPT_REDIS__URL=redis://:PASSWORD@HOST:6379/0 on every host (docs/deployment.md)",
        )


def _note_surplus(folder: RunFolder, log: SupervisorLog) -> None:
    """Say so when the run had more rounds already than it is to have now."""
    done, total = max(folder.checkpointed(), default=0), folder.rounds_total
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
    policy = RestartPolicy(outlast_s=startup_s, most_silent_s=2 * startup_s)
    reports = WorkReports(folder, where.redis_url)
    target = GeneratorsTargetInRedis(where.redis_url, folder.run_id, count, startup_s, limit=plan.generators_limit)
    supervisor = Supervisor(
        plan,
        run=folder.path,
        generators_target=target,
        log=log,
        drain_s=settings.deadlines.drain_s,
        before_drain_of_failed=read_part_events,
        has_worked=reports.has_worked,
        generators_may_start=reports.learner_has_loaded if plan.one_after_the_other else None,
        silent_s=reports.silent_s,
        policy=policy,
        # A learner that hangs is found before generators have waited for its first version in vain. Ranks that wait for
        # each other send no heartbeat: they end by themselves, and name the one that did not come.
        learner_policy=policy if settings.training.ranks > 1 else replace(policy, most_silent_s=1.5 * startup_s),
    )
    loop = asyncio.get_running_loop()
    stop_signals = [number for number in STOP_SIGNALS if not _is_ignored_hang_up(number)]
    for number in stop_signals:
        loop.add_signal_handler(number, supervisor.request_stop, number)
    supervisor.require(ask_about_model(settings))
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
    where = Endpoints(
        redis_url=settings.redis.url.get_secret_value() if settings.redis.url else "",
        services_url=settings.services.url
        or reachable_url(settings.services.host, port, tls=settings.services.tls_key is not None),
        token=token_of(settings),
        generator_redis_url=settings.redis.generator_url.get_secret_value() if settings.redis.generator_url else None,
        generator_token=_generator_token(settings),
        watch_token=settings.services.watch_token.get_secret_value() if settings.services.watch_token else None,
        tls_cert=settings.services.tls_cert and settings.services.tls_cert.resolve(),
    )
    if settings.redis.url is not None:
        return None, where, port
    redis_port = _port_of(before.redis_url if before else None, LOOPBACK)
    redis = EmbeddedRedis(
        folder.redis, redis_port, secrets.token_urlsafe(24), generator_password=secrets.token_urlsafe(24)
    )
    urls = {"redis_url": redis.url, "generator_redis_url": redis.generator_url}
    return redis, where.model_copy(update=urls), port


def _generator_token(settings: Settings) -> str | None:
    """The token of generators; one is drawn for this start where the services have tokens at all."""
    given = settings.services.generator_token
    if given is not None:
        return given.get_secret_value()
    return secrets.token_urlsafe(24) if settings.services.token is not None else None


def _port_of(url: str | None, host: str) -> int:
    """The URL's port if it is free, else a free one."""
    port = port_of(url) if url is not None else None
    return port if port is not None and not why_not_free(host, port) else free_port()
