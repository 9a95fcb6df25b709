"""Leases are taken as the engine has room, kept while they are worked on, and handed in or given back: never lost."""

from __future__ import annotations

import asyncio

import pytest

from generator.engines.base import Completion
from generator.engines.scripted import ScriptedEngine
from services.config import DeadlinesConfig
from services.contracts import Task
from services.streams.tasks import TaskLeaser
from tests.support.generator_world import PATIENCE_S, SLOW_S, World, task, until, until_beat, until_leased, until_state
from tests.support.stream_builders import expire


@pytest.mark.parametrize("samples", [3, 20])
async def test_the_limit_is_in_sequences_whatever_g_is(world: World, samples: int) -> None:
    most = 0

    class Counting(ScriptedEngine):
        async def generate(self, task: Task, sample: int) -> Completion:
            nonlocal most
            most = max(most, self.load().running + self.load().waiting + 1)
            return await super().generate(task, sample)

    world.engine = Counting(step_s=0.001)
    manifest = world.publish(0)
    world.issue(*(task(index, samples=samples) for index in range(8)))
    async with world.going(world.generator(max_in_flight=8), manifest):
        await world.rollouts(8 * samples)
    assert most == 8, "never more than the limit, and all of it is used"


async def test_a_long_answer_holds_up_neither_its_siblings_slots_nor_others(world: World) -> None:
    """Three slots: one sample of the first task grows for as long as the test lasts, all other tasks get done."""

    class OneLong(ScriptedEngine):
        async def generate(self, task: Task, sample: int) -> Completion:
            if (task.index, sample) == (0, 0):
                await asyncio.Event().wait()
            return await super().generate(task, sample)

    world.engine = OneLong()
    world.deadlines = DeadlinesConfig(drain_s=0.05)
    manifest = world.publish(0)
    world.issue(*(task(index, samples=3) for index in range(6)))
    async with world.going(world.generator(max_in_flight=3), manifest):
        rollouts = await world.rollouts(15)
    assert {rollout.index for rollout in rollouts} == {1, 2, 3, 4, 5}


class Gated(ScriptedEngine):
    """Holds every answer until its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.gates = [asyncio.Event() for _ in range(40)]

    async def generate(self, task: Task, sample: int) -> Completion:
        self.begun.append(task.index)
        await self.gates[task.index].wait()
        return await super().generate(task, sample)

    def open(self) -> None:
        for gate in self.gates:
            gate.set()


async def test_a_few_tasks_wait_for_the_next_slots_and_no_more(world: World) -> None:
    """A limit of eight: a quarter of it is leased ahead, and a heartbeat counts what is in the engine."""
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(40)))
    async with world.going(world.generator(max_in_flight=8), manifest):
        await until_leased(world, 10)
        await until_beat(world, lambda beat: beat.in_flight == 8)
        assert engine.begun == list(range(8))
        engine.open()
        await world.rollouts(40)


async def test_a_free_slot_is_taken_without_a_word_to_redis(world: World) -> None:
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index, max_response_tokens=1) for index in range(3)))
    async with world.going(world.generator(max_in_flight=1), manifest):
        await until_leased(world, 2)
        await until(lambda: engine.begun == [0])
        engine.gates[0].set()
        for _ in range(5):  # turns of the event loop: Redis would need more to answer
            await asyncio.sleep(0)
        assert engine.begun == [0, 1]
        engine.open()


async def test_a_small_kv_cache_bounds_what_is_in_flight(world: World) -> None:
    """Thirty tokens hold three answers: the engine gets few at a time, though 64 would be allowed, and all get done."""
    world.engine = ScriptedEngine(step_s=0.001, cache_tokens=30)
    manifest = world.publish(0)
    world.issue(*(task(index, max_response_tokens=8) for index in range(60)))
    async with world.going(world.generator(max_in_flight=64), manifest):
        await world.rollouts(60)
    assert world.engine.load().preemptions < 20


async def test_a_drained_generator_ends_what_it_began(world: World) -> None:
    world.engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(4)))
    generator = world.generator(max_in_flight=2)
    async with world.going(generator, manifest):
        await until(lambda: world.engine.load().running == 2)
    assert len(await world.rollouts(2)) == 2
    assert await world.leftover() == [("r000000-00002", 1), ("r000000-00003", 1)]


async def test_a_drained_generator_gives_back_at_once_what_it_has_not_begun(world: World) -> None:
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(8)))
    generator = world.generator(max_in_flight=4)
    async with world.going(generator, manifest):
        await until_leased(world, 5)
        await until(lambda: len(engine.begun) == 4)
        generator.drain()
        await until_leased(world, 4)
        assert engine.begun == [0, 1, 2, 3]
        engine.open()
    assert {rollout.index for rollout in await world.rollouts(4)} == {0, 1, 2, 3}
    assert await world.leftover() == [(f"r000000-{index:05d}", 1) for index in (4, 5, 6, 7)]


async def test_a_drained_generator_does_not_wait_for_versions_or_tasks(world: World) -> None:
    """Nobody will publish any more; what waits goes to others at once, and the delivery does not count."""
    manifest = world.publish(0)
    world.deadlines = DeadlinesConfig(drain_s=600)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.going(world.generator(), manifest):
        await until_state(world, "waiting_for_weights")
    assert await world.leftover() == [("r000000-00000", 1)]


async def test_work_that_outlasts_the_drain_is_given_back(world: World) -> None:
    world.engine = ScriptedEngine(step_s=60)
    world.deadlines = DeadlinesConfig(drain_s=0.05)
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.going(world.generator(), manifest):
        await until(lambda: world.engine.load().running == 1)
    assert await world.leftover() == [("r000000-00000", 1)]


async def test_leases_that_wait_are_renewed_too(world: World) -> None:
    """The second task waits longer than a lease lasts, and is still nobody else's."""
    world.engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=80), task(1, max_response_tokens=20))
    async with world.going(world.generator(lease_s=1.0, max_in_flight=1), manifest):
        await until_leased(world, 2)
        await world.rollouts(1)
        other = TaskLeaser(world.endpoint.redis, world.endpoint.keys, "another", 1.0)
        assert await other.lease(1, 0) == []
        (rollout,) = await world.rollouts(1)
    assert rollout.generate_s > 1.0


async def test_leases_are_renewed_for_as_long_as_the_work_takes(world: World) -> None:
    world.engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=40))
    async with world.going(world.generator(lease_s=0.2), manifest):
        (rollout,) = await world.rollouts(1)
    assert rollout.generate_s > 0.2
    assert await world.leftover() == []


async def take_over(world: World) -> None:
    """Another generator gets the one task there is, as if its lease had expired."""
    endpoint = world.endpoint
    other = TaskLeaser(endpoint.redis, endpoint.keys, "another", 0.001)
    ((entry_id, _),) = world.client.xrange(endpoint.keys.tasks)  # type: ignore[misc]
    assert isinstance(entry_id, bytes)
    await expire(endpoint.redis, endpoint.keys, entry_id)
    assert len(await other.lease(1, 0)) == 1


async def test_work_whose_lease_another_took_is_stopped(world: World) -> None:
    world.engine = ScriptedEngine(step_s=60)
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.going(world.generator(lease_s=0.3), manifest) as running:
        await until(lambda: world.engine.load().running == 1)
        await take_over(world)
        await until(lambda: world.engine.load().running == 0)
        assert not running.done(), "it goes on with other work"


async def test_work_that_was_lost_while_it_waited_for_a_version_is_stopped_too(world: World) -> None:
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.going(world.generator(lease_s=1.0), manifest) as running:
        await until_state(world, "waiting_for_weights")
        await take_over(world)
        await until_state(world, "waiting_for_tasks")
        assert not running.done()


async def test_a_task_that_was_lost_may_come_again(world: World) -> None:
    """The other lets its lease expire; what is left of the first work on it does not touch the second."""
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.going(world.generator(lease_s=0.6), manifest):
        await until(lambda: engine.begun == [0])
        await take_over(world)
        await until(lambda: engine.begun == [0, 0])
        engine.open()
        await world.rollouts(1)
    assert await world.leftover() == []


async def test_an_answer_to_a_closed_task_is_dropped_and_the_next_is_asked_for(world: World) -> None:
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.going(world.generator(), manifest):
        await until(lambda: engine.begun == [0])
        assert world.issuer.close([task(0).task_id]) == 1
        engine.open()
        world.issue(task(1))
        (rollout,) = await world.rollouts(1)
    assert rollout.index == 1
    assert await world.leftover() == []


async def test_a_task_that_starts_over_keeps_its_place(world: World) -> None:
    """Version 1 is taken back under the two leases that a limit of one allows: no third is taken while they wait."""
    world.engine = ScriptedEngine(step_s=SLOW_S / 2)
    world.publish(0)
    manifest = world.publish(1)
    world.issue(*(task(index, min_weight_version=1, round=1, max_response_tokens=40) for index in range(4)))
    async with world.going(world.generator(max_in_flight=1), manifest):
        await until(lambda: world.engine.load().running == 1)
        await world.serves(0, world.take_back(after=0).digest)
        await until_state(world, "waiting_for_weights")
        await until_leased(world, 2)
        world.publish(1, seed=50)
        rollouts = await world.rollouts(4)
    assert {rollout.spans[0].weight_version for rollout in rollouts} == {1}


async def test_a_generator_that_is_cancelled_gives_back_what_waits_and_what_has_begun(world: World) -> None:
    world.engine = engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0), task(1), task(2, min_weight_version=1, round=1))
    async with world.going(world.generator(), manifest) as running:
        await until_leased(world, 3)
        await until(lambda: engine.begun == [0, 1])
        running.cancel()
        await asyncio.wait((running,), timeout=PATIENCE_S)
        assert running.cancelled()
    assert await world.leftover() == [(f"r000000-{index:05d}", 1) for index in range(3)]
