"""Whatever dies in whatever order, learner and Redis included, every rollout is trained exactly once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from learner.rollouts.collector import Collector
from services.contracts import Task
from services.streams.connection import Keys, connect, connect_async
from services.streams.rollouts import RolloutReader
from services.streams.tasks import Lease, TaskIssuer, TaskLeaser
from tests.support.answering import answers
from tests.support.collected import expected, ids, tasks_of
from tests.support.stream_builders import expire

T = TypeVar("T")

AHEAD = 2
"""Rounds that are issued at once: max_staleness 1."""
GENERATORS = 3
LAST_ROUND = 6
PATIENCE_S = 30.0
generators = st.integers(0, GENERATORS - 1)


def test_every_rollout_is_trained_exactly_once_and_in_order_whatever_dies(redis_url: str) -> None:
    client = connect(redis_url)
    numbers = count()
    with asyncio.Runner() as loop:
        async_client = loop.run(connect_async(redis_url))

        class Run(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.keys = Keys(f"run-{next(numbers)}")
                self.names = count()
                self.leasers = [self.new_leaser() for _ in range(GENERATORS)]
                self.leases: list[list[Lease]] = [[] for _ in range(GENERATORS)]
                self.orphans: list[tuple[TaskLeaser, Lease]] = []
                self.trained: list[str] = []
                self.saved = self.round = 0
                self.collector = self.start_learner()

            def run(self, what: Coroutine[Any, Any, T]) -> T:
                return loop.run(what)

            def new_leaser(self) -> TaskLeaser:
                return TaskLeaser(async_client, self.keys, f"g{next(self.names)}", lease_s=3600)

            def start_learner(self) -> Collector:
                collector = Collector(
                    TaskIssuer(client, self.keys),
                    RolloutReader(client, self.keys),
                    first_round=self.saved,
                    look_every_s=0.01,
                    recheck_after_s=0.05,
                )
                collector.start()
                for round_ in range(self.saved, self.saved + AHEAD):
                    collector.expect(tasks_of(round_))
                return collector

            @rule(who=generators, number=st.integers(1, 5))
            def lease(self, who: int, number: int) -> None:
                self.leases[who] += self.run(self.leasers[who].lease(number, 0))

            @rule(who=generators)
            def complete(self, who: int) -> None:
                if self.leases[who]:
                    lease = self.leases[who].pop()
                    self.run(self.leasers[who].complete(lease, answers(lease.task)))

            @rule(who=generators)
            def generator_dies(self, who: int) -> None:
                self.orphans += [(self.leasers[who], lease) for lease in self.leases[who]]
                self.leases[who], self.leasers[who] = [], self.new_leaser()

            @precondition(lambda self: self.orphans)
            @rule()
            def the_dead_complete_late(self) -> None:
                leaser, lease = self.orphans.pop()
                self.run(leaser.complete(lease, answers(lease.task)))

            @rule()
            def all_leases_expire(self) -> None:
                for held in (*self.leases, [lease for _, lease in self.orphans]):
                    for lease in held:
                        if client.xpending_range(
                            self.keys.tasks, "generators", lease.entry_id.decode(), lease.entry_id.decode(), 1
                        ):
                            self.run(expire(async_client, self.keys, lease.entry_id))

            @rule()
            def redis_comes_back_empty(self) -> None:
                client.delete(*client.keys(f"sept:{{{self.keys.run_id}}}:*") or ["nothing"])
                # the consumer group goes with it: whoever asks next finds it anew, and the learner notices
                self.leases = [[] for _ in range(GENERATORS)]
                self.leasers = [self.new_leaser() for _ in range(GENERATORS)]
                self.orphans = []

            @precondition(lambda self: self.round < LAST_ROUND)
            @rule()
            def train(self) -> None:
                """A generator that lives does what is left; then the learner has its round."""
                survivor = self.new_leaser()
                self.all_leases_expire()
                for _ in range(int(PATIENCE_S / 0.02)):
                    if self.collector.has(tasks_of(self.round)):
                        break
                    for lease in self.run(survivor.lease(64, 0.02)):
                        self.run(survivor.complete(lease, answers(lease.task)))
                self.trained += ids(self.collector.in_order(self.round, PATIENCE_S))
                self.round += 1
                self.collector.expect(tasks_of(self.round + AHEAD - 1))

            @rule()
            def checkpoint(self) -> None:
                self.saved = self.round
                self.collector.release(before_round=self.round)

            @rule()
            def learner_dies(self) -> None:
                self.collector.stop()
                self.trained = self.trained[: self.saved * len(expected(0))]
                self.round = self.saved
                self.collector = self.start_learner()

            def teardown(self) -> None:
                try:
                    while self.round < LAST_ROUND:
                        self.train()
                    assert self.trained == [rollout for round_ in range(LAST_ROUND) for rollout in expected(round_)]
                    self.checkpoint()
                    waiting: list[Task] = [task for at in range(AHEAD) for task in tasks_of(LAST_ROUND + at)]
                    assert len(RolloutReader(client, self.keys).read(0)) <= 2 * len(waiting), "earlier rounds are gone"
                finally:
                    self.collector.stop()

        limits = settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_state_machine_as_test(Run, settings=limits)
        finally:
            loop.run(async_client.aclose())
            client.close()
