"""Whatever leases, expiries, crashes and twins come in whatever order, every task is answered exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from services.contracts import Task
from services.streams import scripts
from services.streams.connection import Keys, connect, connect_async
from services.streams.rollouts import RolloutReader
from services.streams.tasks import Lease, QueueGauge, TaskIssuer, TaskLeaser
from tests.support.stream_builders import expire, make_rollouts, make_task

T = TypeVar("T")

GENERATORS = 3
generators = st.integers(0, GENERATORS - 1)
picks = st.integers(0, 1000)


@dataclass
class Generator:
    """A leaser and what it believes to hold."""

    name: str
    leaser: TaskLeaser
    leases: dict[bytes, Lease] = field(default_factory=dict)


def nth_task(index: int) -> Task:
    return make_task(index, samples=1 + index % 2)


def test_every_task_is_answered_exactly_once_whatever_happens(redis_url: str) -> None:
    client = connect(redis_url)
    run_numbers = count()
    with asyncio.Runner() as loop:
        async_client = loop.run(connect_async(redis_url))

        class Queue(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.keys = Keys(f"run-{next(run_numbers)}")
                self.issuer = TaskIssuer(client, self.keys)
                self.reader = RolloutReader(client, self.keys)
                self.gauge = QueueGauge(async_client, self.keys)
                self.names = count()
                self.generators = [self.new_generator() for _ in range(GENERATORS)]
                self.issued: list[str] = []
                self.twice: set[str] = set()
                self.owner: dict[bytes, str] = {}
                self.expired: set[bytes] = set()
                self.stale: list[tuple[Generator, Lease]] = []
                self.collected: Counter[str] = Counter()

            def new_generator(self, name: str = "") -> Generator:
                name = name or f"g{next(self.names)}"
                return Generator(name, TaskLeaser(async_client, self.keys, name, lease_s=3600))

            def run(self, what: Coroutine[Any, Any, T]) -> T:
                return loop.run(what)

            @rule(number=st.integers(1, 4))
            def issue(self, number: int) -> None:
                tasks = [nth_task(len(self.issued) + at) for at in range(number)]
                self.issued += [task.task_id for task in tasks]
                assert self.issuer.issue(tasks) == number
                assert self.issuer.issue(tasks) == 0

            @precondition(lambda self: self.issued)
            @rule(pick=picks)
            def deliver_again(self, pick: int) -> None:
                """The learner issues a task again whose answer it has not seen: at worst it comes twice."""
                at = pick % len(self.issued)
                task_id = self.issued[at]
                if self.issuer.issue([nth_task(at)]):
                    self.twice.add(task_id)

            @rule(who=generators, number=st.integers(1, 3))
            def lease(self, who: int, number: int) -> None:
                generator = self.generators[who]
                for lease in self.run(generator.leaser.lease(number, 0)):
                    entry_id = lease.entry_id
                    # A living lease of another is never taken away.
                    assert self.owner.get(entry_id) is None or entry_id in self.expired
                    assert entry_id not in generator.leases or self.owner[entry_id] != generator.name
                    self.owner[entry_id] = generator.name
                    self.expired.discard(entry_id)
                    generator.leases[entry_id] = lease
                self.adopt_silently_renewed()

            def adopt_silently_renewed(self) -> None:
                """An expired lease that its holder claimed back counts as renewed; one given up is no lease at all."""
                if not self.expired:
                    return
                pending: Any = client.xpending_range(self.keys.tasks, scripts.GROUP, "-", "+", 1000)
                entries = {entry["message_id"]: entry for entry in pending}
                for entry_id in list(self.expired):
                    if entry_id not in entries:
                        self.gone(entry_id)
                    elif entries[entry_id]["time_since_delivered"] < 3_600_000:
                        self.owner[entry_id] = entries[entry_id]["consumer"].decode()
                        self.expired.discard(entry_id)

            def gone(self, entry_id: bytes) -> None:
                self.owner.pop(entry_id, None)
                self.expired.discard(entry_id)

            @rule(who=generators)
            def renew(self, who: int) -> None:
                generator = self.generators[who]
                owned = self.run(generator.leaser.renew(generator.leases.values()))
                # No lease is stolen back, none is lost without cause.
                assert owned == {entry for entry in generator.leases if self.owner.get(entry) == generator.name}
                self.stale += [(generator, lease) for entry, lease in generator.leases.items() if entry not in owned]
                generator.leases = {entry: lease for entry, lease in generator.leases.items() if entry in owned}
                self.expired -= owned

            @precondition(lambda self: self.owner)
            @rule(pick=picks)
            def expire(self, pick: int) -> None:
                entry_id = sorted(self.owner)[pick % len(self.owner)]
                self.run(expire(async_client, self.keys, entry_id))
                self.expired.add(entry_id)

            @precondition(lambda self: self.owner)
            @rule(who=generators, number=st.integers(1, 9), then=st.sampled_from(["nothing", "renew", "drain"]))
            def fall_silent(self, who: int, number: int, then: str) -> None:
                """All leases expire at once, one generator asks for work, and the others may come back too late."""
                for entry_id in self.owner:
                    self.run(expire(async_client, self.keys, entry_id))
                self.expired = set(self.owner)
                self.lease(who, number)
                for other in range(GENERATORS):
                    if then == "renew":
                        self.renew(other)
                    elif then == "drain" and other != who:
                        self.drain(other)
                self.renew(who)

            @rule(who=generators, pick=picks)
            def complete(self, who: int, pick: int) -> None:
                generator = self.generators[who]
                if generator.leases:
                    entry_id = sorted(generator.leases)[pick % len(generator.leases)]
                    self.finish(generator, generator.leases.pop(entry_id))

            @rule(who=generators)
            def complete_all_at_once(self, who: int) -> None:
                """Also what another has completed, or the learner has closed: each call gets the answer to its own."""
                generator = self.generators[who]
                leases = [*generator.leases.values(), *(lease for owner, lease in self.stale if owner is generator)]

                async def complete() -> list[bool]:
                    return await asyncio.gather(
                        *(generator.leaser.complete(lease, make_rollouts(lease.task)) for lease in leases)
                    )

                for lease, first in zip(leases, self.run(complete()), strict=True):
                    assert first == (lease.entry_id in self.owner)
                    self.gone(lease.entry_id)
                self.stale += [(generator, lease) for lease in generator.leases.values()]
                generator.leases = {}

            @precondition(lambda self: self.stale)
            @rule(pick=picks)
            def complete_late(self, pick: int) -> None:
                """From a generator that lost the lease, or is long dead, or has completed it already."""
                self.finish(*self.stale[pick % len(self.stale)])

            def finish(self, generator: Generator, lease: Lease) -> None:
                first = self.run(generator.leaser.complete(lease, make_rollouts(lease.task, generator.name)))
                assert first == (lease.entry_id in self.owner)
                self.gone(lease.entry_id)
                self.stale.append((generator, lease))

            @rule(who=generators, keeps_name=st.booleans())
            def crash(self, who: int, keeps_name: bool) -> None:
                generator = self.generators[who]
                self.stale += [(generator, lease) for lease in generator.leases.values()]
                self.generators[who] = self.new_generator(generator.name if keeps_name else "")

            @precondition(lambda self: self.issued)
            @rule(pick=picks)
            def close(self, pick: int) -> None:
                """The learner takes a task back, as after a rollback: whoever works on it is refused."""
                task_id = self.issued[pick % len(self.issued)]
                entry_id: Any = client.hget(self.keys.open, task_id)
                assert self.issuer.close([task_id]) == (entry_id is not None)
                if entry_id:
                    self.gone(entry_id)

            @rule(who=generators)
            def drain(self, who: int) -> None:
                generator = self.generators[who]
                self.run(generator.leaser.release(generator.leases.values()))
                for entry_id in generator.leases:
                    if self.owner.get(entry_id) == generator.name:
                        self.expired.add(entry_id)
                        self.owner[entry_id] = "-released"
                generator.leases = {}

            @rule()
            def collect(self) -> None:
                self.collected.update(rollout.rollout_id for _, rollout in self.reader.read(0))
                depth = self.run(self.gauge.read())
                released = sum(owner == "-released" for owner in self.owner.values())
                assert depth.tasks_leased == len(self.owner) - released

            def teardown(self) -> None:
                """Everyone dies, one generator is left, and the learner issues again what was given up."""
                survivor = self.new_generator().leaser
                answers = {
                    f"{task_id}.{sample}"
                    for at, task_id in enumerate(self.issued)
                    for sample in range(nth_task(at).samples)
                }
                for _ in range(3):
                    for entry_id in self.owner:
                        self.run(expire(async_client, self.keys, entry_id))
                    self.owner = {}
                    while leases := self.run(survivor.lease(64, 0)):
                        for lease in leases:
                            assert self.run(survivor.complete(lease, make_rollouts(lease.task)))
                    self.collect()
                    missing = [at for at, task_id in enumerate(self.issued) if f"{task_id}.0" not in self.collected]
                    self.issuer.issue([nth_task(at) for at in missing])
                assert set(self.collected) == answers
                twice = {answer for answer, times in self.collected.items() if times > 1}
                assert {answer.rpartition(".")[0] for answer in twice} <= self.twice
                depth = self.run(self.gauge.read())
                assert (depth.tasks_queued, depth.tasks_leased) == (0, 0)

        limits = settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_state_machine_as_test(Queue, settings=limits)
        finally:
            loop.run(async_client.aclose())
            client.close()
