"""One part of a local run, kept running: started, restarted with a growing delay, given up after too many failures.

Failures count until the part has done work. Having lived for long is not enough: a part may always fail late.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deploy import exit_codes
from deploy.local.memory_watch import MemoryWatch
from deploy.local.processes import Process, ProcessSpec, last_log_lines
from deploy.local.supervisor_log import SupervisorLog
from services.contracts import Part
from services.errors import UnavailableError

KILL_GRACE_S = 15.0
"""A part that has not left this long after its own drain deadline is killed: an engine's processes take 3 s to end, and
several times that on a busy machine."""

SILENCE_CHECK_S = 2.0
"""How often a part is asked for its last heartbeat."""

SHOWN_LINES = 15
"""Lines of its log that the error about a part shows."""


LESS_MEMORY = (
    "let it need less (training.gradient_checkpointing = full, a lower training.micro_batch_tokens, lora.rank), or let "
    "the other parts leave it more (generator.count, generator.cpu_cache_gib); `sept doctor` estimates what each needs"
)
LESS_ENGINE_MEMORY = (
    "lower generator.cpu_cache_gib, generator.max_in_flight or generator.count, or take a smaller model; `sept doctor` "
    "estimates what each part needs"
)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a dead part again, and when to stop trying.

    RestartPolicy(first_delay_s=0.5)    # 0.5, 1, 2, 4 ... s between restarts, at most longest_delay_s
    RestartPolicy(settled_s=60)         # 60 s of life with work done: the deaths before count no more
    RestartPolicy(max_failures=5)       # the fifth failure in a row is the last
    RestartPolicy(max_kills=30)         # being killed from outside (kill -9) says less about the part
    RestartPolicy(max_out_of_memory=2)  # the kernel killed it for lack of memory: it will not fit the next time either
    RestartPolicy(outlast_s=600)        # so long it may fail for want of something outside: a disk, Redis, an ingress
    RestartPolicy(most_silent_s=1200)   # without a heartbeat for so long a part hangs: it is killed, and has failed
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    settled_s: float = 60.0
    max_failures: int = 5
    max_kills: int = 30
    max_out_of_memory: int = 2
    outlast_s: float = 600.0
    most_silent_s: float = 1200.0

    def delay_s(self, deaths: int) -> float:
        """Seconds to wait after the given number of deaths in a row."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(deaths - 1, 30))


def _out_of_memory(peak_bytes: int) -> str:
    size = f" when it had at least {peak_bytes / 2**30:.1f} GiB" if peak_bytes else ""
    return f"killed by the kernel for lack of memory{size}"


def never_worked(_part: str, _pid: int) -> bool:
    """For parts whose work nobody reports: every failure counts."""
    return False


def never_silent(_part: str, _pid: int) -> float:
    """For parts that send no heartbeats."""
    return 0.0


class _End(NamedTuple):
    """How a process ended."""

    code: int
    in_words: str


class SupervisedPart:
    """A task that keeps one part running until it finishes, is stopped, or dies too often.

    `has_worked` says of the part and the process that has ended whether it did any work, `silent_s` of one that lives
    for how many seconds it has sent no heartbeat.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        run: Path,
        policy: RestartPolicy,
        log: SupervisorLog,
        *,
        may_finish: bool,
        has_worked: Callable[[str, int], bool] = never_worked,
        silent_s: Callable[[str, int], float] = never_silent,
    ) -> None:
        self.spec = spec
        self._run_folder = run
        self._policy = policy
        self._log = log
        self._may_finish = may_finish
        self._has_worked = has_worked
        self._silent_s = silent_s
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._deaths = 0
        self._failures = 0
        self._kills = 0
        self._out_of_memory = 0
        self._lacking_since: float | None = None
        """When it began to fail for want of something outside, on the loop's clock."""
        self.task = asyncio.create_task(self._keep(), name=spec.name)

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            self._process = await Process.start(self.spec, run=self._run_folder)
            self._log.record("part_started", part=self.spec.name, pid=self._process.pid)
            if self._stopping.is_set():  # stopped while it was being started: it has nothing to drain yet
                self._process.kill()
            memory = MemoryWatch(self._process.pid)
            watching = asyncio.create_task(memory.follow())
            end = await self._wait(self._process)
            watching.cancel()
            if self._stopping.is_set() or (end.code == exit_codes.OK and self._may_finish):
                self._log.record("part_ended", part=self.spec.name, exit_code=end.code)
                return
            await self._wait_before_restart(end, self._process, memory)

    async def _wait(self, process: Process) -> _End:
        """How the process ended; one that is silent for too long hangs: it is killed and has failed."""
        ended = asyncio.create_task(process.wait())
        while not (await asyncio.wait([ended], timeout=SILENCE_CHECK_S))[0]:
            silent_s = min(process.lived_s, self._silent_s(self.spec.name, process.pid))
            if silent_s >= self._policy.most_silent_s and not self._stopping.is_set():
                process.kill()
                await ended
                return _End(exit_codes.FAILED, f"killed, as it had sent no heartbeat for {silent_s:.0f} s")
        code = ended.result()
        return _End(code, exit_codes.in_words(code))

    async def _wait_before_restart(self, end: _End, process: Process, memory: MemoryWatch) -> None:
        code, lived_s, too_large = end.code, process.lived_s, memory.killed_by_kernel()
        if self._has_worked(self.spec.name, process.pid) and lived_s >= self._policy.settled_s:
            self._deaths = self._failures = self._kills = self._out_of_memory = 0
            self._lacking_since = None
        if self.spec.mend is not None and code > 0 and (done := self.spec.mend(process.output())):
            self._log.record("part_mended", part=self.spec.name, done=done)
        self._count(code, too_large=too_large)
        if self._out_of_memory >= self._policy.max_out_of_memory:
            raise self._too_large(memory.peak_bytes, lived_s)
        if self._must_give_up(code):
            raise self._gave_up(end, lived_s)
        delay_s = self._policy.delay_s(self._deaths)
        self._log.record(
            "part_died",
            part=self.spec.name,
            ended=_out_of_memory(memory.peak_bytes) if too_large else end.in_words,
            lived_s=round(lived_s, 1),
            **({"last_words": _last_words(process.output())} if code > 0 else {}),
            restart_in_s=round(delay_s, 1),
        )
        try:
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        except TimeoutError:
            return  # not stopped: start it again

    def _count(self, code: int, *, too_large: bool) -> None:
        """A want of something outside counts by its duration, a failure of its own by its number."""
        now = asyncio.get_running_loop().time()
        self._deaths += 1
        if too_large:
            self._out_of_memory += 1
        elif code == exit_codes.UNAVAILABLE:
            self._lacking_since = self._lacking_since or now
        elif code == -signal.SIGKILL:
            self._kills += 1
        else:
            self._failures += 1

    def _must_give_up(self, code: int) -> bool:
        policy, now = self._policy, asyncio.get_running_loop().time()
        lacked_s = 0.0 if self._lacking_since is None else now - self._lacking_since
        return (
            code in exit_codes.PERMANENT
            or self._failures >= policy.max_failures
            or self._kills >= policy.max_kills
            or (code == exit_codes.UNAVAILABLE and lacked_s >= policy.outlast_s)
        )

    def _gave_up(self, end: _End, lived_s: float) -> UnavailableError:
        lines = "\n".join(f"    {line}" for line in last_log_lines(self.spec.log, SHOWN_LINES))
        deaths = self._deaths
        times = "" if deaths == 1 else f" {deaths} times in a row without having worked, the last time"
        return UnavailableError(
            f"{self.spec.name} died{times} after {lived_s:.1f} s ({end.in_words}). "
            f"The end of its log:\n{lines or '    (it wrote nothing)'}",
            hint=f"fix what it names, then start again: the run resumes. The whole log: {self.spec.log}",
        )

    def _too_large(self, peak_bytes: int, lived_s: float) -> UnavailableError:
        learns = not self.spec.name.startswith(Part.GENERATOR.value)
        return UnavailableError(
            f"{self.spec.name} was {_out_of_memory(peak_bytes)}, {self._out_of_memory} times in a row without having "
            f"worked, the last time after {lived_s:.1f} s",
            hint=LESS_MEMORY if learns else LESS_ENGINE_MEMORY,
        )

    def terminate(self) -> None:
        """Let the part drain, and do not start it again."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the part now."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()


def _last_words(output: str) -> str:
    """The last thing that a process wrote, as far as it fits into a line; its hint is not it."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("hint:")]
    return lines[-1][:300] if lines else ""
