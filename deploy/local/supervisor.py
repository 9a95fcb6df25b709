"""Runs the parts of a local run from start to end: starts them, scales the generators, drains all in order.

                start (all at once)
redis, services, learner, generator-0 .. n-1
                drain (stage by stage)
learner and generators  ->  services  ->  redis
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deploy.local.processes import ProcessSpec
from deploy.local.supervised_part import KILL_GRACE_S, RestartPolicy, SupervisedPart, never_silent, never_worked
from deploy.local.supervisor_log import SupervisorLog

SAME_STOP_S = 1.0
"""Stop requests this close together count as one: a shell or make passes on the signal that its group received."""


class GeneratorsTarget(Protocol):
    """The number of generators that a person asked for."""

    def follow(self) -> AsyncIterator[int]:
        """Yields the number whenever it may have changed; waits while Redis does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The processes of a run. `redis` is None when the run uses a Redis that it does not start."""

    redis: ProcessSpec | None
    services: ProcessSpec
    learner: ProcessSpec
    generator: Callable[[int], ProcessSpec]
    generators_target: int
    """Generators to start with."""
    one_after_the_other: bool = False
    """Whether generators start only when the learner has loaded, as on a GPU that they share: an engine measures the
    memory that is free, which must not change meanwhile."""
    generators_limit: int | None = None
    """Most generators that this machine has room for; None: any number."""


class Supervisor:
    """Runs a plan to its end.

    supervisor = Supervisor(plan, run=folder, generators_target=..., log=...)
    stopped_by = await supervisor.run()     # None: the learner finished; else the signal that asked to stop

    `learner_policy` is that of the learner, where it is not `policy`.
    `generators_may_start` is awaited before the first of them is started.
    `before_drain_of_failed` is awaited when a run has failed, while its parts still run. `has_worked` says of a part
    and its process, which has ended, whether it did any work; `silent_s` of one that lives, since when it has sent no
    heartbeat.
    """

    def __init__(
        self,
        plan: RunPlan,
        *,
        run: Path,
        generators_target: GeneratorsTarget,
        log: SupervisorLog,
        policy: RestartPolicy | None = None,
        learner_policy: RestartPolicy | None = None,
        drain_s: float = 20.0,
        grace_s: float = KILL_GRACE_S,
        same_stop_s: float = SAME_STOP_S,
        before_drain_of_failed: Callable[[], Awaitable[None]] | None = None,
        has_worked: Callable[[str, int], bool] = never_worked,
        generators_may_start: Callable[[], Awaitable[None]] | None = None,
        silent_s: Callable[[str, int], float] = never_silent,
    ) -> None:
        self._plan = plan
        self._generators_may_start = generators_may_start
        self._run_folder = run
        self._generators_target = generators_target
        self._log = log
        self._policy = policy or RestartPolicy()
        self._learner_policy = learner_policy or self._policy
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._same_stop_s = same_stop_s
        self._before_drain_of_failed = before_drain_of_failed
        self._has_worked = has_worked
        self._silent_s = silent_s
        self._generators: dict[int, SupervisedPart] = {}
        self._leaving: set[SupervisedPart] = set()
        self._conditions: set[asyncio.Task[object]] = set()
        self._over = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopped_by: signal.Signals | None = None
        self._stopped_at = 0.0

    async def run(self) -> signal.Signals | None:
        """Start everything, keep it running until the learner has finished or somebody stops it, then drain.

        Raises UnavailableError with the end of the part's log when one cannot be kept running.
        """
        redis = self._start_part(self._plan.redis) if self._plan.redis is not None else None
        services = self._start_part(self._plan.services)
        learner = self._start_part(self._plan.learner, self._learner_policy, may_finish=True)
        if self._generators_may_start is None:
            self._scale(self._plan.generators_target)
        scaler = asyncio.create_task(self._follow_target())
        scaler.add_done_callback(self._on_end)
        try:
            await self._over.wait()
            if self._failure is not None and self._before_drain_of_failed is not None:
                await self._before_drain_of_failed()
        finally:
            scaler.cancel()
            for condition in self._conditions:
                condition.cancel()
            generators = [*self._generators.values(), *self._leaving]
            for stage in ([learner, *generators], [services], [redis] if redis is not None else []):
                await self._drain(stage)
        if self._failure is not None:
            raise self._failure
        return self._stopped_by

    def require(self, condition: Coroutine[Any, Any, object]) -> None:
        """End the run with the error that the condition raises, if it raises one while the run lasts."""
        task = asyncio.create_task(condition)
        task.add_done_callback(self._on_condition)
        self._conditions.add(task)

    def request_stop(self, by: signal.Signals) -> None:
        """The first request drains, a second one kills what is left. Call it from the event loop's thread."""
        now = asyncio.get_running_loop().time()
        if self._stopped_by is not None:
            if now - self._stopped_at < self._same_stop_s:
                return
            self._stop_now.set()
            self._log.record("stopping_now", signal=by.name)
        else:
            self._stopped_by = by
            self._stopped_at = now
            self._over.set()
            self._log.record("stopping", signal=by.name, remedy="a second one (Ctrl-C) kills what has not ended")

    def _start_part(
        self, spec: ProcessSpec, policy: RestartPolicy | None = None, *, may_finish: bool = False
    ) -> SupervisedPart:
        part = SupervisedPart(
            spec,
            self._run_folder,
            policy or self._policy,
            self._log,
            may_finish=may_finish,
            has_worked=self._has_worked,
            silent_s=self._silent_s,
        )
        part.task.add_done_callback(self._on_end)
        return part

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """The learner has finished, or a part cannot be kept running: either way the run is over."""
        if task.cancelled() or task in {part.task for part in self._leaving}:
            return
        self._fail(task.exception())
        self._over.set()

    def _on_condition(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())
            self._over.set()

    def _fail(self, error: BaseException | None) -> None:
        if error is not None and self._failure is None:
            self._failure = error
            self._log.record("run_failed", error=str(error).splitlines()[0])

    async def _follow_target(self) -> None:
        if self._generators_may_start is not None:
            await self._generators_may_start()
            self._scale(self._plan.generators_target)
        async for generators_target in self._generators_target.follow():
            if generators_target != len(self._generators):
                self._log.record("scaling", generators_target=generators_target, before=len(self._generators))
                self._scale(generators_target)

    def _scale(self, generators_target: int) -> None:
        """Start or drain generators until there are `generators_target`; the highest numbers leave first."""
        self._leaving = {part for part in self._leaving if not part.task.done()}
        for index in range(len(self._generators), generators_target):
            self._generators[index] = self._start_part(self._plan.generator(index))
        for index in range(len(self._generators) - 1, generators_target - 1, -1):
            part = self._generators.pop(index)
            self._leaving.add(part)
            part.terminate()

    async def _drain(self, parts: Iterable[SupervisedPart]) -> None:
        """Terminate, wait for as long as a drain may take, then kill. A second stop request skips the wait."""
        parts = list(parts)
        for part in parts:
            part.terminate()
        tasks = [part.task for part in parts]
        if not tasks:
            return
        stop_now = asyncio.create_task(self._stop_now.wait())
        gone = asyncio.create_task(asyncio.wait(tasks, timeout=self._drain_s + self._grace_s))
        await asyncio.wait([gone, stop_now], return_when=asyncio.FIRST_COMPLETED)
        stop_now.cancel()
        for part in parts:
            if not part.task.done():
                self._log.record("part_killed", part=part.spec.name)
                part.kill()
        await asyncio.wait(tasks)
        await gone
