"""A generator with real queues and a real endpoint: it answers tasks, reports its state and releases its leases."""

from __future__ import annotations

import asyncio
import time

import pytest

from generator.engines.scripted import ScriptedEngine
from services.errors import EngineError
from services.time_accounting import StateClock
from tests.support.generator_world import PATIENCE_S, SLOW_S, World, task, until, until_state


async def test_it_answers_every_sample_of_every_task(world: World) -> None:
    manifest = world.publish(0)
    world.issue(*(task(index, samples=2) for index in range(20)))
    async with world.running(world.generator(), manifest):
        rollouts = await world.rollouts(40)
    assert {rollout.rollout_id for rollout in rollouts} == {f"r000000-{n:05d}.{s}" for n in range(20) for s in (0, 1)}
    assert all(rollout.generator_id == "g0" and rollout.spans[0].weight_version == 0 for rollout in rollouts)
    assert await world.heartbeat() is None, "a generator that ended in order is not shown as lost"


async def test_the_clock_accounts_for_every_second(world: World) -> None:
    """Starting, waiting for tasks, for weights, generating, paused for an update: together the wall time."""
    engine = ScriptedEngine(step_s=SLOW_S, follows_weights=True)
    began = time.monotonic()
    clock = StateClock("starting")
    generator = world.generator(engine=engine, clock=clock)
    manifest = world.publish(0)
    async with world.running(generator, manifest):
        await until_state(world, "waiting_for_tasks")
        starting_s = clock.seconds()["starting"]
        world.issue(task(0, min_weight_version=1, round=1), task(1, min_weight_version=2, round=2))
        await until_state(world, "waiting_for_weights")
        world.publish(1)
        (first,) = await world.rollouts(1)
        world.publish(2)
        (second,) = await world.rollouts(1)
        seconds = clock.seconds()
        wall_s = time.monotonic() - began
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=0.02)
    assert seconds.keys() == {"starting", "waiting_for_tasks", "waiting_for_weights", "generating", "updating"}
    assert seconds["starting"] == starting_s, "no later second counts as starting"
    slept_s = SLOW_S * (first.response_tokens.size + second.response_tokens.size - 2)
    assert slept_s <= seconds["generating"] <= first.generate_s + second.generate_s
    assert 0 < seconds["updating"] < 0.5 * wall_s


async def test_an_engine_that_dies_ends_the_generator_and_its_leases_are_released(world: World) -> None:
    engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=1000))
    async with world.running(world.generator(engine=engine), manifest) as running:
        await until(lambda: engine.load().running == 1)
        engine.die("out of memory")
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(EngineError, match="out of memory")
    assert await world.leasable() == [("r000000-00000", 1)]


async def test_a_restarted_generator_reuses_its_mirror(world: World) -> None:
    manifest = world.publish(0)
    for _ in range(2):
        async with world.running(world.generator(engine=ScriptedEngine()), manifest):
            await world.serves(0, manifest.digest)


async def test_it_survives_a_redis_that_restarts_empty(world: World) -> None:
    manifest = world.publish(0)
    engine = ScriptedEngine(step_s=SLOW_S)
    world.issue(task(0, max_response_tokens=20))
    async with world.running(world.generator(lease_s=0.2, engine=engine), manifest):
        await until(lambda: engine.load().running == 1)
        world.client.flushall()
        assert not world.issuer.alive()
        world.issue(task(0, max_response_tokens=20), task(1))
        rollouts = await world.rollouts(2)
    assert {rollout.rollout_id for rollout in rollouts} == {"r000000-00000.0", "r000000-00001.0"}
