"""Tasks out, rollouts in: which tasks are outstanding, and each round's rollouts in task order.

The collector reads on a thread of its own, so that rollouts arrive while the learner trains. It accepts a rollout once,
by identity, and keeps its entry in Redis until `release`, which the loop calls when the checkpoint that contains its
training is durable.

Three threads meet here: the loop's waits in `in_order`, the publisher's calls `expect`, and the collector's own reads
and finds out what was lost. `_changed` guards all state, and no command is sent to Redis while it is held.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from operator import contains
from typing import NamedTuple

import structlog

from learner.rollouts.answer_check import MAX_FAULTY_TASKS, REFUSED_S, AnswerCheck, Fault
from services.contracts import Purpose, Rollout, Task
from services.errors import ContractError, DeadlineError, FencedError
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.streams.wire import entered_at

log = structlog.get_logger()

READ_S = 0.2
"""How long one read waits for the next rollout: what stopping waits for at most."""
GATHER_S = 0.05
"""While nobody waits for rollouts, as during training, they gather in Redis for so long: every read interrupts the
thread that trains."""
LOOK_EVERY_S = 1.0
"""How often Redis is asked whether it is still the same."""
RECHECK_AFTER_S = 5.0
"""Silence after which outstanding tasks are checked, and those that nobody has any more are issued again."""
MAX_REISSUES = 3
"""So often a task that was given up is issued again before the run ends. One whose answers are refused is issued again
until the wait for rollouts has its deadline: a single bad generator must not end a run with good ones."""
JOIN_S = 5.0

Identity = tuple[int, int, int]
"""(round, position, sample)."""
Waiting = Callable[[], AbstractContextManager[None]]
"""Accounts the time of a wait."""


class _Received(NamedTuple):
    rollout: Rollout
    entry_id: bytes


class _Refused(NamedTuple):
    rollout: Rollout
    entry_id: bytes
    fault: Fault


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked the wait to end
    """The wait for rollouts was ended by `interrupt`."""


class Collector:
    """Issues tasks and yields their rollouts in task order, whatever order they arrive in.

    It leaves rollouts for another `purpose` alone. What fails `check` is buried and its task sampled again; a generator
    that fails often is refused for a while, which `on_refusal` is told with the name and the reason. `reason_of` says
    why a task was given up, by task id, for the error that names it.

    Example::

        collector.start()
        collector.expect(curriculum.tasks_of(0))
        for rollout in collector.in_order(0, deadline_s=600):
            ...
        collector.release(before_round=1)      # once a checkpoint holds round 0
    """

    def __init__(
        self,
        issuer: TaskIssuer,
        reader: RolloutReader,
        *,
        first_round: int,
        purpose: Purpose = Purpose.TRAINING,
        check: AnswerCheck | None = None,
        reason_of: Callable[[str], str] = lambda task_id: "",
        on_refusal: Callable[[str, str], object] = lambda generator_id, reason: None,
        look_every_s: float = LOOK_EVERY_S,
        recheck_after_s: float = RECHECK_AFTER_S,
    ) -> None:
        self._issuer = issuer
        self._reader = reader
        self._first_round = first_round
        self._purpose = purpose
        self._check = check or AnswerCheck()
        self._reason_of = reason_of
        self._on_refusal = on_refusal
        self._look_every_s = look_every_s
        self._recheck_after_s = recheck_after_s
        self._expected: dict[int, dict[int, Task]] = {}
        self._received: dict[Identity, _Received] = {}
        self._entries: dict[int, list[bytes]] = {}
        self._changed = threading.Condition()
        self._wanted = threading.Event()
        """Set while somebody waits for rollouts."""
        self._issuing = threading.Lock()  # what one thread has registered and not issued yet is not lost to another
        self._last_arrival = time.monotonic()
        self._reissues: Counter[str] = Counter()
        self._faulty: dict[str, set[str]] = defaultdict(set)
        """Generator -> tasks that it answered wrongly."""
        self._last_fault = ""
        self._fatal: BaseException | None = None
        self._interrupted = False
        self._stopping = threading.Event()
        self._thread = self._new_thread()
        self.reissued = 0
        """Tasks issued again so far."""

    def start(self) -> None:
        """Take in the rollouts that already wait in Redis, then keep reading in the background."""
        self._issuer.alive()
        self._take_in()
        if self._received:
            log.info("rollouts_found", count=len(self._received), rounds=sorted({i[0] for i in self._received}))
        self._thread.start()

    def discard_from(self, first_round: int) -> None:
        """Forget every task and every rollout from `first_round` on, here and in Redis: all of it is sampled anew.

        Nobody may wait for rollouts or issue tasks meanwhile. A generator's answer to a closed task is refused.
        Raises DeadlineError when Redis keeps the reading from ending.
        """
        self.stop()
        if self._thread.is_alive():
            raise DeadlineError("Redis", "the end of a read", JOIN_S)
        self._issuer.close([task.task_id for tasks in self._expected.values() for task in tasks.values()])
        with self._changed:
            self._first_round = first_round
            self._expected.clear()
            self._entries.clear()
            self._reissues.clear()
        self._reader.rewind()
        self._take_in()  # also what was never read here, such as rollouts of a learner before this one
        with self._changed:
            entries = [entry_id for of_round in self._entries.values() for entry_id in of_round]
            self._entries.clear()
            self._received.clear()
        self._reader.delete(entries)
        self._stopping.clear()
        self._thread = self._new_thread()
        self._thread.start()

    def stop(self) -> None:
        """End the reading; a read that hangs in a Redis that is away is left behind."""
        self._stopping.set()
        self._thread.join(JOIN_S)

    def interrupt(self) -> None:
        """End the wait for rollouts, now and from now on; safe to call from a signal handler."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make whoever waits for rollouts raise `error`: what they wait for will never come."""
        with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()

    @property
    def held(self) -> int:
        """Rollouts in memory."""
        with self._changed:
            return len(self._received)

    def has(self, tasks: Sequence[Task]) -> bool:
        """Whether every rollout of these tasks is here."""
        with self._changed:
            return all(
                (received := self._received.get(identity)) is not None
                and self._check.fault(received.rollout, task) is None
                for task in tasks
                for identity in _identities(task)
            )

    def expect(self, tasks: Sequence[Task]) -> None:
        """Expect the rollouts of these tasks of one round, and issue the tasks whose rollouts are not here yet."""
        if not tasks:
            return
        refused = []
        with self._issuing:
            with self._changed:
                self._expected.setdefault(tasks[0].round, {}).update({task.position: task for task in tasks})
                for identity, (rollout, entry_id) in list(self._received.items()):
                    if identity[0] == tasks[0].round and (fault := self._fault(rollout)) is not None:
                        refused.append(_Refused(rollout, entry_id, fault._replace(blamed=False)))
                        del self._received[identity]
                missing = self._missing(tasks)
                self._changed.notify_all()
            self._bury(refused)
            self._issuer.issue(missing)

    def in_order(self, round_: int, deadline_s: float, waiting: Waiting = nullcontext) -> Iterator[Rollout]:
        """Yield the round's rollouts by (position, sample), each as soon as it and all before it are here.

        Every pause lies within a `waiting()` context, for whoever accounts the time.

        Raises DeadlineError when nothing at all arrives for `deadline_s`, Interrupted after `interrupt`, ContractError
        when a task was given up for good.
        """
        self._wait(partial(contains, self._expected, round_), round_, deadline_s, waiting)
        with self._changed:
            tasks = sorted(self._expected[round_].items())
        for identity in (identity for _, task in tasks for identity in _identities(task)):
            self._wait(partial(contains, self._received, identity), round_, deadline_s, waiting)
            with self._changed:
                rollout = self._received[identity].rollout
            yield rollout

    def completed_at(self, rollout: Rollout) -> float:
        """When a rollout that is held was handed in: Unix seconds by Redis' clock."""
        with self._changed:
            return entered_at(self._received[rollout.round, rollout.position, rollout.sample].entry_id)

    def release(self, before_round: int) -> None:
        """Delete from Redis and memory everything of earlier rounds."""
        with self._changed:
            self._first_round = max(self._first_round, before_round)
            entries = [entry for r in [r for r in self._entries if r < before_round] for entry in self._entries.pop(r)]
            for identity in [identity for identity in self._received if identity[0] < before_round]:
                del self._received[identity]
            for round_ in [round_ for round_ in self._expected if round_ < before_round]:
                del self._expected[round_]
        self._reader.delete(entries)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _wait(self, here: Callable[[], bool], round_: int, deadline_s: float, waiting: Waiting) -> None:
        with self._changed:
            if here():
                return
        started = time.monotonic()
        with waiting(), self._wanting(), self._changed:
            while not here():
                if self._fatal is not None:
                    raise self._fatal
                if self._interrupted:
                    raise Interrupted
                quiet_s = time.monotonic() - max(started, self._last_arrival)
                if quiet_s >= deadline_s:
                    raise self._late(round_, quiet_s)
                self._changed.wait(deadline_s - quiet_s)

    @contextmanager
    def _wanting(self) -> Iterator[None]:
        self._wanted.set()
        try:
            yield
        finally:
            self._wanted.clear()

    def _late(self, round_: int, quiet_s: float) -> DeadlineError:
        missing = self._missing(list(self._expected.get(round_, {}).values()))
        names = ", ".join(task.task_id for task in missing[:3]) + (" ..." if len(missing) > 3 else "")
        return DeadlineError(
            "the generators",
            f"round {round_} lacks the rollouts of {len(missing)} tasks ({names})"
            + (f"; the last one that was refused: {self._last_fault}" if self._last_fault else ""),
            quiet_s,
            hint="see `sept status` for the generators' state, start one with `sept generator`, "
            "or raise deadlines.rollouts_s when answers take longer than that",
        )

    def _missing(self, tasks: Sequence[Task]) -> list[Task]:
        return [task for task in tasks if any(identity not in self._received for identity in _identities(task))]

    # -- the reading thread ----------------------------------------------------------------------------------------

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="collector", daemon=True)

    def _run(self) -> None:
        asked = rechecked = time.monotonic()
        try:
            while not self._stopping.is_set():
                if self._accept(self._reader.read(min(READ_S, self._look_every_s))):
                    self._issue_lost(blame=False)
                now = time.monotonic()
                if now - asked >= self._look_every_s:
                    asked = now
                    if not self._issuer.alive():
                        self._after_redis_restarted()
                if now - max(self._last_arrival, rechecked) >= self._recheck_after_s:
                    rechecked = now
                    self._issue_lost(blame=True)
                self._wanted.wait(GATHER_S)
        except BaseException as error:
            self.fail(error)  # else a wait for rollouts would never end
            if not isinstance(error, ContractError | FencedError):
                raise

    def _after_redis_restarted(self) -> None:
        """Redis may have come back empty, or without its last second: read all of it again, then find what is missing.

        Tasks whose completion it has forgotten are closed, as their rollouts are here.
        """
        log.warning("redis_restarted")
        with self._changed:
            self._entries.clear()
        self._reader.rewind()
        self._take_in()
        with self._changed:
            expected = [task for tasks in self._expected.values() for task in tasks.values()]
            missing = {task.task_id for task in self._missing(expected)}
        self._issuer.close([task.task_id for task in expected if task.task_id not in missing])
        self._issue_lost(blame=False)

    def _issue_lost(self, *, blame: bool) -> None:
        """Issue again the expected tasks that are neither here nor in Redis.

        `blame`: Redis has lost nothing and no answer was refused here, so the task was given up there.
        """
        with self._issuing:
            with self._changed:
                missing = self._missing([task for tasks in self._expected.values() for task in tasks.values()])
            unknown = set(self._issuer.unknown(missing))
            # A task leaves the queue the instant its rollouts appear, so what was just completed is here now.
            refused = self._take_in()
            with self._changed:
                lost = [task for task in self._missing(missing) if task.task_id in unknown]
            if blame and lost:
                self._reissues.update(task.task_id for task in lost)
                self._give_up_hopeless(lost)
            self.reissued += self._issuer.issue(lost)
        if lost:
            log.warning("tasks_reissued", count=len(lost), first=lost[0].task_id)
        if refused:  # answers to tasks that were open when Redis was asked
            self._issue_lost(blame=False)

    def _give_up_hopeless(self, lost: Sequence[Task]) -> None:
        for task in lost:
            if self._reissues[task.task_id] > MAX_REISSUES:
                reason = self._reason_of(task.task_id) or "nothing says why"
                raise ContractError(
                    f"task {task.task_id} was issued {MAX_REISSUES + 1} times and never done: {reason}",
                    hint="the logs of the generators say what it does to them; leave its prompt out of data.path, "
                    "or lower generator.max_in_flight if they run out of memory",
                )

    def _take_in(self) -> bool:
        """Accept everything that waits in Redis now; whether something of it was refused."""
        refused = False
        while arrived := self._reader.read(0):
            refused = self._accept(arrived) or refused
        return refused

    def _accept(self, arrived: Sequence[tuple[bytes, Rollout]]) -> bool:
        """Take what is right; whether something was wrong, so that its task must be sampled again."""
        outdated: list[bytes] = []
        refused: list[_Refused] = []
        with self._changed:
            for entry_id, rollout in arrived:
                if rollout.purpose is not self._purpose:
                    continue
                if rollout.round < self._first_round:
                    outdated.append(entry_id)
                elif (fault := self._fault(rollout)) is not None:
                    refused.append(_Refused(rollout, entry_id, fault))
                else:
                    self._entries.setdefault(rollout.round, []).append(entry_id)
                    identity = (rollout.round, rollout.position, rollout.sample)
                    self._received.setdefault(identity, _Received(rollout, entry_id))
                    self._last_arrival = time.monotonic()
            self._changed.notify_all()
        self._reader.delete(outdated)
        self._bury(refused)
        return bool(refused)

    def _fault(self, rollout: Rollout) -> Fault | None:
        """What is wrong with the rollout, as far as its task is known yet."""
        tasks = self._expected.get(rollout.round)
        if tasks is None:
            return self._check.fault(rollout, None)
        task = tasks.get(rollout.position)
        if task is None:
            return Fault(f"round {rollout.round} has no task at position {rollout.position}")
        return self._check.fault(rollout, task)

    def _bury(self, refused: Sequence[_Refused]) -> None:
        """Set the rollouts aside with their reasons, and refuse a generator that has failed often."""
        for rollout, entry_id, fault in refused:
            self._last_fault = f"{rollout.rollout_id} of {rollout.generator_id}: {fault.reason}"
            self._reader.bury(entry_id, rollout, fault.reason)
            faulty = self._faulty[rollout.generator_id]
            if fault.blamed:
                faulty.add(rollout.task_id)
            if len(faulty) >= MAX_FAULTY_TASKS:
                faulty.clear()
                self._issuer.refuse(rollout.generator_id, REFUSED_S, fault.reason)
                log.warning("generator_refused", generator_id=rollout.generator_id, reason=fault.reason)
                self._on_refusal(rollout.generator_id, fault.reason)


def _identities(task: Task) -> Iterator[Identity]:
    return ((task.round, task.position, sample) for sample in range(task.samples))
