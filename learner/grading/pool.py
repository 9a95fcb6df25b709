"""Grades many responses in worker processes with limits on time and memory.

An answer like 9^{9^{9^9}} keeps sympy inside one C call that no signal handler interrupts. So the kernel sets the
limits: it ends a worker that exceeds its processor time, which is then replaced, and caps its address space. Processor
time, unlike wall time, gives the same grade on a busy machine. Workers come from a fork server, not from a fork of this
process, which may have threads and a CUDA context.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from learner.grading.extraction import Candidate, find_candidate
from learner.grading.math_grading import Grade, Outcome, grade_answer
from learner.grading.strict_grading import find_last_box, grade_box
from services.errors import DeadlineError, UnavailableError

START_S = 120.0
"""Deadline for a worker to start and import math-verify, on a busy machine."""
WALL_FACTOR = 10
"""A worker is killed as stuck once the wall time of an answer exceeds this many times the processor time limit."""
_READY = b"ready"


@dataclass(frozen=True, slots=True)
class _Job:
    """One answer to grade; equal ones are graded once."""

    candidate: Candidate
    truth: str


@dataclass(frozen=True, slots=True)
class _Batch:
    """State of one `grade_many`."""

    waiting: deque[_Job]
    grades: dict[_Job, Grade]
    suspects: set[_Job]
    """Jobs whose worker died once, perhaps for another reason; after a second time the job has failed."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    deadline: float
    """On the monotonic clock, while starting or busy."""
    ready: bool = False
    job: _Job | None = None


class GraderPool:
    """A fixed number of grading processes; one `grade_many` at a time.

    with GraderPool(workers=4) as pool:
        grades = pool.grade_many([(response, truth), ...])
    """

    def __init__(
        self, workers: int = 2, *, time_limit_s: float = 10.0, memory_bytes: int = 1 << 30, strict: bool = False
    ) -> None:
        """Limits for one answer: `time_limit_s` of processor time, and `memory_bytes` of address space beyond that of a
        fresh worker. `strict`: only the last box counts (`strict_grading`)."""
        if workers < 1:
            raise ValueError(f"a pool has at least one worker, got {workers}")
        self._count = workers
        self._time_limit_s = time_limit_s
        self._memory_bytes = memory_bytes
        self._strict = strict
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["math_verify", "learner.grading.math_grading"])
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers."""
        while self._workers:
            self._stop(self._workers.pop())

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """The grades of (response, truth) pairs, in their order. Equal pairs are graded once.

        DeadlineError or UnavailableError when workers do not start.
        """
        find = find_last_box if self._strict else find_candidate
        jobs = [_Job(find(response), truth) for response, truth in pairs]
        distinct = dict.fromkeys(jobs)
        batch = _Batch(deque(distinct), {}, set())
        while len(batch.grades) < len(distinct):
            self._assign(batch.waiting)
            self._receive(batch)
            self._expire(batch)
        return [batch.grades[job] for job in jobs]

    def _assign(self, waiting: deque[_Job]) -> None:
        for worker in self._workers:
            if waiting and worker.ready and worker.job is None:
                job = waiting.popleft()
                try:
                    worker.connection.send_bytes(json.dumps([asdict(job.candidate), job.truth]).encode())
                except OSError:  # it died while idle, so not because of this job
                    waiting.appendleft(job)
                    self._replace(worker)
                    return
                worker.job, worker.deadline = job, time.monotonic() + WALL_FACTOR * self._time_limit_s

    def _receive(self, batch: _Batch) -> None:
        """Wait until a worker answers or dies, or a deadline passes."""
        active = {worker.connection: worker for worker in self._workers if not worker.ready or worker.job is not None}
        timeout = max(0.0, min(worker.deadline for worker in active.values()) - time.monotonic())
        for connection in wait(list(active), timeout):
            worker = active[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv_bytes()
            except (EOFError, OSError):
                self._handle_death(worker, batch)
                continue
            if worker.job is None:
                worker.ready = message == _READY
            else:
                outcome, answer = json.loads(message)
                batch.grades[worker.job], worker.job = Grade(Outcome(outcome), answer), None

    def _handle_death(self, worker: _Worker, batch: _Batch) -> None:
        worker.process.join(START_S)
        if worker.job is None:
            raise UnavailableError(
                f"a grading process ended with code {worker.process.exitcode} before it was ready",
                hint="its own error output says why; math-verify must be installed with this program",
            )
        timed_out = worker.process.exitcode == -signal.SIGPROF
        if timed_out or worker.job in batch.suspects:
            outcome = Outcome.TIMEOUT if timed_out else Outcome.FAILED
            batch.grades[worker.job] = Grade(outcome, worker.job.candidate.boxed or "")
        else:
            batch.suspects.add(worker.job)
            batch.waiting.appendleft(worker.job)
        self._replace(worker)

    def _expire(self, batch: _Batch) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.deadline > now or (worker.ready and worker.job is None):
                continue
            if worker.job is None:
                raise DeadlineError("a grading process", "its start", START_S, hint="is the machine overloaded?")
            batch.grades[worker.job] = Grade(Outcome.TIMEOUT, worker.job.candidate.boxed or "")
            self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._stop(worker)
        self._workers.append(self._start())

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(theirs, self._time_limit_s, self._memory_bytes, self._strict),
            name="grader",
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic() + START_S)

    @staticmethod
    def _stop(worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join(START_S)
        worker.process.close()


def _serve(connection: Connection, time_limit_s: float, memory_bytes: int, strict: bool) -> None:
    """Main function of a worker: answers requests until the pool closes the connection."""
    import math_verify  # noqa: F401  so that the import does not count against the first answer's time

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool handles Ctrl-C
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit_memory(memory_bytes)
    connection.send_bytes(_READY)
    while True:
        try:
            candidate, truth = json.loads(connection.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)
        try:
            grade = (grade_box if strict else grade_answer)(Candidate(**candidate), truth)
        except MemoryError:
            grade = Grade(Outcome.FAILED, candidate["boxed"] or "")
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps([grade.outcome, grade.answer]).encode())


def _limit_memory(memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
