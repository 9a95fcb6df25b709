"""Leases are taken as the engine has room, renewed during the work, and completed or released: never lost."""

from __future__ import annotations

import asyncio

import pytest

from generator.engines.base import Completion
from generator.engines.scripted import ScriptedEngine
from services.config import DeadlinesConfig
from services.contracts import Purpose, Task
from services.streams.tasks import TaskLeaser
from tests.support.generator_world import (
    PATIENCE_S,
    SLOW_S,
    World,
    task,
    until,
    until_heartbeat,
    until_leased,
    until_state,
)
from tests.support.stream_builders import expire


@pytest.mark.parametrize("samples", [3, 20])
async def test_the_limit_is_in_sequences_whatever_g_is(world: World, samples: int) -> None:
    most = 0

    class Counting(ScriptedEngine):
        async def generate(self, task: Task, sample: int) -> Completion:
            nonlocal most
            most = max(most, self.load().running + self.load().waiting + 1)
            return await super().generate(task, sample)

    engine = Counting(step_s=0.001)
    manifest = world.publish(0)
    world.issue(*(task(index, samples=samples) for index in range(8)))
    async with world.running(world.generator(max_in_flight=8, engine=engine), manifest):
        await world.rollouts(8 * samples)
    assert most == 8, "the limit is reached and never exceeded"


async def test_a_long_response_blocks_neither_the_slots_of_its_task_nor_those_of_others(world: World) -> None:
    """Three slots: one sample of the first task never ends, and all other tasks are completed."""

    class OneLong(ScriptedEngine):
        async def generate(self, task: Task, sample: int) -> Completion:
            if (task.position, sample) == (0, 0):
                await asyncio.Event().wait()
            return await super().generate(task, sample)

    engine = OneLong()
    manifest = world.publish(0)
    world.issue(*(task(index, samples=3) for index in range(6)))
    async with world.running(
        world.generator(max_in_flight=3, engine=engine, deadlines=DeadlinesConfig(drain_s=0.05)), manifest
    ):
        rollouts = await world.rollouts(15)
    assert {rollout.position for rollout in rollouts} == {1, 2, 3, 4, 5}


class Gated(ScriptedEngine):
    """Holds every response back until the gate of its task is open."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[int] = []
        self.gates = [asyncio.Event() for _ in range(40)]

    async def generate(self, task: Task, sample: int) -> Completion:
        self.started.append(task.position)
        await self.gates[task.position].wait()
        return await super().generate(task, sample)

    def open(self) -> None:
        for gate in self.gates:
            gate.set()


async def test_a_quarter_of_the_limit_is_prefetched_and_no_more(world: World) -> None:
    """Of ten leased tasks eight are in the engine; the heartbeat counts these."""
    engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(40)))
    async with world.running(world.generator(max_in_flight=8, engine=engine), manifest):
        await until_leased(world, 10)
        await until_heartbeat(world, lambda beat: beat.in_flight == 8)
        assert engine.started == list(range(8))
        engine.open()
        await world.rollouts(40)


async def test_a_free_slot_is_taken_without_a_request_to_redis(world: World) -> None:
    engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index, max_response_tokens=1) for index in range(3)))
    async with world.running(world.generator(max_in_flight=1, engine=engine), manifest):
        await until_leased(world, 2)
        await until(lambda: engine.started == [0])
        engine.gates[0].set()
        for _ in range(5):  # passes of the event loop: an answer of Redis takes more
            await asyncio.sleep(0)
        assert engine.started == [0, 1]
        engine.open()


async def test_a_small_kv_cache_bounds_what_is_in_flight(world: World) -> None:
    """Thirty tokens hold three responses: few are in flight, though 64 are allowed, and all are completed."""
    engine = ScriptedEngine(step_s=0.001, cache_tokens=30)
    manifest = world.publish(0)
    world.issue(*(task(index, max_response_tokens=8) for index in range(60)))
    async with world.running(world.generator(max_in_flight=64, engine=engine), manifest):
        await world.rollouts(60)
    assert engine.load().preemptions < 20


async def test_a_drained_generator_finishes_what_is_being_sampled(world: World) -> None:
    engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(4)))
    generator = world.generator(max_in_flight=2, engine=engine)
    async with world.running(generator, manifest):
        await until(lambda: engine.load().running == 2)
    assert len(await world.rollouts(2)) == 2
    assert await world.leasable() == [("r000000-00002", 1), ("r000000-00003", 1)]


async def test_a_drained_generator_releases_at_once_what_is_not_being_sampled(world: World) -> None:
    engine = Gated()
    manifest = world.publish(0)
    world.issue(*(task(index) for index in range(8)))
    generator = world.generator(max_in_flight=4, engine=engine)
    async with world.running(generator, manifest):
        await until_leased(world, 5)
        await until(lambda: len(engine.started) == 4)
        generator.drain()
        await until_leased(world, 4)
        assert engine.started == [0, 1, 2, 3]
        engine.open()
    assert {rollout.position for rollout in await world.rollouts(4)} == {0, 1, 2, 3}
    assert await world.leasable() == [(f"r000000-{index:05d}", 1) for index in (4, 5, 6, 7)]


async def test_a_drained_generator_does_not_wait_for_versions_or_tasks(world: World) -> None:
    """A lease that waits for a version is released at once, and its delivery does not count."""
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.running(world.generator(deadlines=DeadlinesConfig(drain_s=600)), manifest):
        await until_state(world, "waiting_for_weights")
    assert await world.leasable() == [("r000000-00000", 1)]


async def test_work_that_outlasts_the_drain_is_released(world: World) -> None:
    engine = ScriptedEngine(step_s=60)
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.running(world.generator(engine=engine, deadlines=DeadlinesConfig(drain_s=0.05)), manifest):
        await until(lambda: engine.load().running == 1)
    assert await world.leasable() == [("r000000-00000", 1)]


async def test_leases_that_wait_for_a_slot_are_renewed_too(world: World) -> None:
    """The second task waits longer than a lease lasts, and no other generator gets it."""
    engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=80), task(1, max_response_tokens=20))
    async with world.running(world.generator(lease_s=1.0, max_in_flight=1, engine=engine), manifest):
        await until_leased(world, 2)
        await world.rollouts(1)
        other = TaskLeaser(world.endpoint.redis, world.endpoint.keys, "another", 1.0)
        assert await other.lease(1, 0) == []
        (rollout,) = await world.rollouts(1)
    assert rollout.generate_s > 1.0


async def test_leases_are_renewed_for_as_long_as_the_work_takes(world: World) -> None:
    engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=40))
    async with world.running(world.generator(lease_s=0.2, engine=engine), manifest):
        (rollout,) = await world.rollouts(1)
    assert rollout.generate_s > 0.2
    assert await world.leasable() == []


async def take_over(world: World) -> None:
    """Another generator leases the only task, as if its lease had expired."""
    endpoint = world.endpoint
    other = TaskLeaser(endpoint.redis, endpoint.keys, "another", 0.001)
    ((entry_id, _),) = world.client.xrange(endpoint.keys.tasks)  # type: ignore[misc]
    assert isinstance(entry_id, bytes)
    await expire(endpoint.redis, endpoint.keys, entry_id)
    assert len(await other.lease(1, 0)) == 1


async def test_work_whose_lease_another_generator_took_is_stopped(world: World) -> None:
    engine = ScriptedEngine(step_s=60)
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.running(world.generator(lease_s=0.3, engine=engine), manifest) as running:
        await until(lambda: engine.load().running == 1)
        await take_over(world)
        await until(lambda: engine.load().running == 0)
        assert not running.done(), "it continues with other work"


async def test_work_that_waits_for_a_version_is_stopped_too_when_its_lease_is_lost(world: World) -> None:
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.running(world.generator(lease_s=1.0), manifest) as running:
        await until_state(world, "waiting_for_weights")
        await take_over(world)
        await until_state(world, "waiting_for_tasks")
        assert not running.done()


async def test_a_lost_task_can_be_leased_again(world: World) -> None:
    """The other generator's lease expires; the end of the first work does not remove the second lease."""
    engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.running(world.generator(lease_s=0.6, engine=engine), manifest):
        await until(lambda: engine.started == [0])
        await take_over(world)
        await until(lambda: engine.started == [0, 0])
        engine.open()
        await world.rollouts(1)
    assert await world.leasable() == []


async def test_a_response_to_a_closed_task_is_dropped_and_the_next_task_is_leased(world: World) -> None:
    engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0))
    async with world.running(world.generator(engine=engine), manifest):
        await until(lambda: engine.started == [0])
        assert world.issuer.close([task(0).task_id]) == 1
        engine.open()
        world.issue(task(1))
        (rollout,) = await world.rollouts(1)
    assert rollout.position == 1
    assert await world.leasable() == []


async def test_tasks_that_start_over_count_as_outstanding(world: World) -> None:
    """Version 1 is retracted under the two leases that a limit of one allows: no third is taken while they wait."""
    engine = ScriptedEngine(step_s=SLOW_S / 2)
    world.publish(0)
    manifest = world.publish(1)
    world.issue(*(task(index, min_weight_version=1, round=1, max_response_tokens=40) for index in range(4)))
    async with world.running(world.generator(max_in_flight=1, engine=engine), manifest):
        await until(lambda: engine.load().running == 1)
        await world.serves(0, world.retract_after(0).digest)
        await until_state(world, "waiting_for_weights")
        await until_leased(world, 2)
        world.publish(1, seed=50)
        rollouts = await world.rollouts(4)
    assert {rollout.spans[0].weight_version for rollout in rollouts} == {1}


async def test_a_cancelled_generator_releases_all_its_leases(world: World) -> None:
    engine = Gated()
    manifest = world.publish(0)
    world.issue(task(0), task(1), task(2, min_weight_version=1, round=1))
    async with world.running(world.generator(engine=engine), manifest) as running:
        await until_leased(world, 3)
        await until(lambda: engine.started == [0, 1])
        running.cancel()
        await asyncio.wait((running,), timeout=PATIENCE_S)
        assert running.cancelled()
    assert await world.leasable() == [(f"r000000-{index:05d}", 1) for index in range(3)]


async def test_a_rollout_says_of_its_task_what_the_learner_compares_it_by(world: World) -> None:
    manifest = world.publish(0)
    asked = task(
        3,
        round=2,
        samples=2,
        temperature=0.85,
        top_p=0.9,
        top_k=11,
        min_p=0.05,
        purpose=Purpose.EVALUATION,
    )
    world.issue(asked)
    async with world.running(world.generator(name="g7"), manifest):
        rollouts = await world.rollouts(2)
    assert [rollout.sample for rollout in rollouts] == [0, 1]
    shared = ("task_id", "round", "position", "temperature", "top_p", "top_k", "min_p", "purpose")
    for rollout in rollouts:
        assert {name: getattr(rollout, name) for name in shared} == {name: getattr(asked, name) for name in shared}
        assert rollout.prompt_tokens.tolist() == asked.prompt_tokens.tolist()
        assert rollout.generator_id == "g7"
        assert {span.weight_digest for span in rollout.spans} == {manifest.digest}
        assert rollout.queued_s >= 0
        assert rollout.generate_s > 0
