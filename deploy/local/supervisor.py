"""Keeps the parts of a local run alive: starts, restarts with backoff, scales, drains in order.

Knows processes and their order; not what the parts do nor where their settings come from.

                    start (all at once)
    redis, services, learner, generator-0 .. n-1
                    drain (stage by stage)
    learner and generators  ->  services  ->  redis
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy import exit_codes
from deploy.local.event_log import Journal
from deploy.local.processes import Process, Spec, last_words
from services.errors import UnavailableError

KILL_GRACE_S = 15.0
"""A part that has not left this long after its own drain deadline is killed: an engine's processes take 3 s to end, and
several times that on a busy machine."""

SAME_STOP_S = 1.0
"""Requests this close together are one: a shell or make passes on the signal that its whole group received."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a dead part again, and when to stop trying.

    RestartPolicy(first_delay_s=0.5)    # 0.5, 1, 2, 4 ... s between restarts, at most longest_delay_s
    RestartPolicy(settled_s=60)         # a part that lived 60 s starts again with a clean record
    RestartPolicy(max_failures=5)       # the fifth failure in a row is the last
    RestartPolicy(max_kills=30)         # being killed from outside (kill -9, out of memory) says less about the part
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    settled_s: float = 60.0
    max_failures: int = 5
    max_kills: int = 30

    def delay_s(self, deaths: int) -> float:
        """Seconds to wait after the given number of deaths in a row."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(deaths - 1, 30))


class Keeper:
    """Keeps one part running until it finishes, is stopped, or cannot be kept running."""

    def __init__(self, spec: Spec, run: Path, policy: RestartPolicy, journal: Journal, *, may_finish: bool) -> None:
        self.spec = spec
        self._run_folder = run
        self._policy = policy
        self._journal = journal
        self._may_finish = may_finish
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._failures = 0
        self._kills = 0
        self.task = asyncio.create_task(self._keep(), name=spec.name)

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            self._process = await Process.start(self.spec, run=self._run_folder)
            self._journal.note("part_started", part=self.spec.name, pid=self._process.pid)
            if self._stopping.is_set():  # asked to stop while it was being started: it has nothing to drain yet
                self._process.kill()
            code = await self._process.wait()
            if self._stopping.is_set() or (code == exit_codes.OK and self._may_finish):
                self._journal.note("part_ended", part=self.spec.name, exit_code=code)
                return
            await self._pause_before_restart(code, self._process.lived_s)

    async def _pause_before_restart(self, code: int, lived_s: float) -> None:
        if lived_s >= self._policy.settled_s:
            self._failures = self._kills = 0
        if code == -signal.SIGKILL:
            self._kills += 1
        else:
            self._failures += 1
        permanent = code in exit_codes.PERMANENT
        if permanent or self._failures >= self._policy.max_failures or self._kills >= self._policy.max_kills:
            raise self._given_up(code, lived_s)
        delay_s = self._policy.delay_s(self._failures + self._kills)
        self._journal.note(
            "part_died",
            part=self.spec.name,
            ended=exit_codes.in_words(code),
            lived_s=round(lived_s, 1),
            restart_in_s=round(delay_s, 1),
        )
        try:
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        except TimeoutError:
            return  # not stopped: start it again

    def _given_up(self, code: int, lived_s: float) -> UnavailableError:
        words = "\n".join(f"    {line}" for line in last_words(self.spec.log, 15)) or "    (it wrote nothing)"
        deaths = self._failures + self._kills
        times = "" if deaths == 1 else f" {deaths} times in a row, the last time"
        return UnavailableError(
            f"{self.spec.name} died{times} after {lived_s:.1f} s ({exit_codes.in_words(code)}). "
            f"Its last words:\n{words}",
            hint=f"mend what they name, then start again: the run resumes. The whole log: {self.spec.log}",
        )

    def terminate(self) -> None:
        """Ask the part to drain, and do not start it again."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the part now."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()


class DesiredGenerators(Protocol):
    """Where the wanted number of generators comes from."""

    def follow(self) -> AsyncIterator[int]:
        """Yields the wanted number whenever it may have changed; rides out a Redis that is away."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a run. `redis` is None when Redis is somebody else's."""

    redis: Spec | None
    services: Spec
    learner: Spec
    generator: Callable[[int], Spec]
    generators: int


class Supervisor:
    """Runs a plan to its end.

    supervisor = Supervisor(plan, run=folder, desired=..., journal=...)
    stopped_by = await supervisor.run()     # None: the learner finished; else the signal that asked to stop

    `last_look` is awaited when a run has failed, before its parts are drained.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        run: Path,
        desired: DesiredGenerators,
        journal: Journal,
        policy: RestartPolicy | None = None,
        drain_s: float = 20.0,
        grace_s: float = KILL_GRACE_S,
        same_stop_s: float = SAME_STOP_S,
        last_look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._plan = plan
        self._run_folder = run
        self._desired = desired
        self._journal = journal
        self._policy = policy or RestartPolicy()
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._same_stop_s = same_stop_s
        self._last_look = last_look
        self._generators: dict[int, Keeper] = {}
        self._leaving: set[Keeper] = set()
        self._over = asyncio.Event()
        self._now = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopped_by: signal.Signals | None = None
        self._stopped_at = 0.0

    async def run(self) -> signal.Signals | None:
        """Start everything, keep it running until the learner has finished or somebody stops it, drain.

        Raises UnavailableError with the part's last words when one cannot be kept running.
        """
        redis = self._keep(self._plan.redis) if self._plan.redis is not None else None
        services = self._keep(self._plan.services)
        learner = self._keep(self._plan.learner, may_finish=True)
        self._scale(self._plan.generators)
        follower = asyncio.create_task(self._follow_desired())
        follower.add_done_callback(self._note_end)
        try:
            await self._over.wait()
            if self._failure is not None and self._last_look is not None:
                await self._last_look()
        finally:
            follower.cancel()
            generators = [*self._generators.values(), *self._leaving]
            for stage in ([learner, *generators], [services], [redis] if redis is not None else []):
                await self._drain(stage)
        if self._failure is not None:
            raise self._failure
        return self._stopped_by

    def request_stop(self, by: signal.Signals) -> None:
        """The first request drains, a second one ends everything now. To be called from the loop's own thread."""
        now = asyncio.get_running_loop().time()
        if self._stopped_by is not None:
            if now - self._stopped_at < self._same_stop_s:
                return
            self._journal.note("stopping_now", signal=by.name)
            self._now.set()
        else:
            self._journal.note("stopping", signal=by.name)
            self._stopped_by = by
            self._stopped_at = now
        self._over.set()

    def _keep(self, spec: Spec, *, may_finish: bool = False) -> Keeper:
        keeper = Keeper(spec, self._run_folder, self._policy, self._journal, may_finish=may_finish)
        keeper.task.add_done_callback(self._note_end)
        return keeper

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """The learner is done, or something cannot go on: either way the run is over."""
        if task.cancelled() or task in {keeper.task for keeper in self._leaving}:
            return
        error = task.exception()
        if error is not None and self._failure is None:
            self._failure = error
            self._journal.note("run_failed", error=str(error).splitlines()[0])
        self._over.set()

    async def _follow_desired(self) -> None:
        async for wanted in self._desired.follow():
            if wanted != len(self._generators):
                self._journal.note("scaling", generators=wanted, before=len(self._generators))
                self._scale(wanted)

    def _scale(self, wanted: int) -> None:
        """Start or drain generators until there are as many as wanted; the highest numbers leave first."""
        self._leaving = {keeper for keeper in self._leaving if not keeper.task.done()}
        for index in range(len(self._generators), wanted):
            self._generators[index] = self._keep(self._plan.generator(index))
        for index in range(len(self._generators) - 1, wanted - 1, -1):
            keeper = self._generators.pop(index)
            self._leaving.add(keeper)
            keeper.terminate()

    async def _drain(self, keepers: Iterable[Keeper]) -> None:
        """Ask, wait for as long as a drain may take, then insist. A second stop request skips the waiting."""
        keepers = list(keepers)
        for keeper in keepers:
            keeper.terminate()
        tasks = [keeper.task for keeper in keepers]
        if not tasks:
            return
        now = asyncio.create_task(self._now.wait())
        gone = asyncio.create_task(asyncio.wait(tasks, timeout=self._drain_s + self._grace_s))
        await asyncio.wait([gone, now], return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        for keeper in keepers:
            if not keeper.task.done():
                self._journal.note("part_killed", part=keeper.spec.name)
                keeper.kill()
        await asyncio.wait(tasks)
        await gone
