"""Tasks out, rollouts in: what the learner is owed, and each round's rollouts in task order.

Owns the learner's side of Redis on a thread of its own, so that rollouts arrive while the learner trains. Accepts a
rollout once, by identity; keeps its entry in Redis until `release`, which the loop calls when the checkpoint that
contains its training is durable. Knows nothing of models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import structlog

from services.contracts import Rollout, Task
from services.errors import DeadlineError
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer

log = structlog.get_logger()

READ_BLOCK_S = 1.0
"""How long one read waits at Redis for the next rollout."""
RECHECK_AFTER_S = 5.0
"""Silence after which the tasks still owed are checked, and those that Redis has lost are issued again."""

Identity = tuple[int, int, int]
"""(round, index, sample)."""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked the wait to end
    """The wait for rollouts was ended by `interrupt`."""


class Collector:
    """Issues tasks and yields their rollouts in task order, whatever order they arrive in.

    Example::

        collector.start()
        collector.expect(curriculum.tasks_of(0))
        for rollout in collector.in_order(0, deadline_s=600):
            ...
        collector.release(before_round=1)      # once a checkpoint holds round 0
    """

    def __init__(self, issuer: TaskIssuer, reader: RolloutReader, *, first_round: int) -> None:
        self._issuer = issuer
        self._reader = reader
        self._first_round = first_round
        self._owed: dict[int, dict[int, Task]] = {}
        self._received: dict[Identity, Rollout] = {}
        self._entries: dict[int, list[bytes]] = {}
        self._changed = threading.Condition()
        self._last_arrival = time.monotonic()
        self._fatal: BaseException | None = None
        self._interrupted = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self.reissued = 0

    def start(self) -> None:
        """Take in the rollouts that already wait in Redis, then keep reading in the background."""
        self._issuer.alive()
        while arrived := self._reader.read(0):
            self._accept(arrived)
        if self._received:
            log.info("rollouts_found", count=len(self._received), rounds=sorted({i[0] for i in self._received}))
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def interrupt(self) -> None:
        """End the wait for rollouts, now and from now on; safe to call from a signal handler."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    @property
    def held(self) -> int:
        """Rollouts in memory."""
        return len(self._received)

    def expect(self, tasks: Sequence[Task]) -> None:
        """Be owed these tasks of one round, and issue those whose rollouts are not here yet."""
        if not tasks:
            return
        with self._changed:
            owed = self._owed.setdefault(tasks[0].round, {})
            owed.update({task.index: task for task in tasks})
            for identity, rollout in [item for item in self._received.items() if item[0][0] == tasks[0].round]:
                if not self._answers(rollout):
                    del self._received[identity]
                    log.warning("foreign_rollout", rollout_id=rollout.rollout_id, generator_id=rollout.generator_id)
            missing = self._missing(tasks)
        self._issuer.issue(missing)

    def in_order(
        self, round_: int, deadline_s: float, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Iterator[Rollout]:
        """Yield the round's rollouts by (index, sample), each as soon as it and all before it are here.

        Every pause lies within a `waiting()` context, for whoever accounts the time.

        Raises DeadlineError when nothing at all arrives for `deadline_s`, Interrupted after `interrupt`.
        """
        for index, task in sorted(self._owed[round_].items()):
            for sample in range(task.samples):
                identity = (round_, index, sample)
                if identity not in self._received:
                    with waiting():
                        self._wait_for(identity, deadline_s)
                yield self._received[identity]

    def release(self, before_round: int) -> None:
        """Delete from Redis and memory everything of earlier rounds."""
        with self._changed:
            self._first_round = max(self._first_round, before_round)
            entries = [entry for r in [r for r in self._entries if r < before_round] for entry in self._entries.pop(r)]
            for identity in [identity for identity in self._received if identity[0] < before_round]:
                del self._received[identity]
            for round_ in [round_ for round_ in self._owed if round_ < before_round]:
                del self._owed[round_]
        self._reader.delete(entries)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _wait_for(self, identity: Identity, deadline_s: float) -> None:
        started = time.monotonic()
        while True:
            with self._changed:
                if identity in self._received:
                    return
                if self._fatal is not None:
                    raise self._fatal
                if self._interrupted:
                    raise Interrupted
                self._changed.wait(RECHECK_AFTER_S)
                quiet_since = max(started, self._last_arrival)
            quiet_s = time.monotonic() - quiet_since
            if quiet_s >= deadline_s:
                raise self._late(identity[0], quiet_s)
            if quiet_s >= RECHECK_AFTER_S:
                self._issue_what_is_lost()

    def _late(self, round_: int, quiet_s: float) -> DeadlineError:
        missing = self._missing(list(self._owed[round_].values()))
        names = ", ".join(task.task_id for task in missing[:3]) + (" ..." if len(missing) > 3 else "")
        return DeadlineError(
            "the generators",
            f"round {round_} lacks the rollouts of {len(missing)} tasks ({names})",
            quiet_s,
            hint="see `sept status` for the generators' state, start one with `sept generator`, "
            "or raise deadlines.rollouts_s when answers take longer than that",
        )

    def _issue_what_is_lost(self) -> None:
        """Issue again what Redis no longer knows: it came back empty, or a poisoned entry was taken out."""
        if not self._issuer.alive():
            log.warning("redis_came_back_empty")
            self._reader.rewind()
        with self._changed:
            missing = self._missing([task for tasks in self._owed.values() for task in tasks.values()])
        unknown = set(self._issuer.unknown([task.task_id for task in missing]))
        with self._changed:
            lost = [task for task in self._missing(missing) if task.task_id in unknown]
        if lost:
            self.reissued += self._issuer.issue(lost)
            log.warning("tasks_reissued", count=len(lost), first=lost[0].task_id)

    def _missing(self, tasks: Sequence[Task]) -> list[Task]:
        return [
            task
            for task in tasks
            if any((task.round, task.index, sample) not in self._received for sample in range(task.samples))
        ]

    # -- the reading thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._accept(self._reader.read(READ_BLOCK_S))
        except BaseException as error:  # handed to the thread that waits, which would otherwise wait for ever
            with self._changed:
                self._fatal = error
                self._changed.notify_all()
            raise

    def _accept(self, arrived: Sequence[tuple[bytes, Rollout]]) -> None:
        outdated = []
        with self._changed:
            for entry_id, rollout in arrived:
                if rollout.round < self._first_round:
                    outdated.append(entry_id)
                    continue
                self._entries.setdefault(rollout.round, []).append(entry_id)
                if not self._answers(rollout):
                    log.warning("foreign_rollout", rollout_id=rollout.rollout_id, generator_id=rollout.generator_id)
                    continue
                self._received.setdefault((rollout.round, rollout.index, rollout.sample), rollout)
            if arrived:
                self._last_arrival = time.monotonic()
                self._changed.notify_all()
        if outdated:
            self._reader.delete(outdated)

    def _answers(self, rollout: Rollout) -> bool:
        """Whether the rollout answers the task it names (as far as that task is known yet)."""
        tasks = self._owed.get(rollout.round)
        if tasks is None:
            return True
        task = tasks.get(rollout.index)
        return (
            task is not None
            and task.task_id == rollout.task_id
            and rollout.sample < task.samples
            and np.array_equal(task.prompt_tokens, rollout.prompt_tokens)
            and rollout.spans[0].weight_version >= task.min_weight_version
        )
