"""The engine follows versions up, republished and down, and serves none that is damaged; tasks wait for theirs."""

from __future__ import annotations

import asyncio

import pytest

from generator.engines.scripted import ScriptedEngine
from generator.versions import wait_for_first_version
from services.config import DeadlinesConfig
from services.errors import DeadlineError
from services.streams.events import AsyncEventLog
from tests.support.generator_world import PATIENCE_S, SLOW_S, World, task, until, until_message, until_state
from tests.support.vllm_models import changed


async def test_it_follows_versions_up_republished_and_down(world: World) -> None:
    """Newer versions; the same version with other bytes; and an older one, as after a rollback of the learner."""
    store = world.endpoint.store
    manifest = world.publish(0)
    async with world.running(world.generator(), manifest):
        await world.serves(0, manifest.digest)
        for version in (1, 2, 3):
            await world.serves(version, world.publish(version).digest)
        await world.serves(3, world.publish(3, seed=99).digest)
        await world.serves(1, world.retract_after(1).digest)
        served = await world.engine.checksums()
        assert served == {entry.name: entry.digest for entry in store.manifest(1).tensors}
        await world.serves(2, world.publish(2, seed=77).digest)
        served = await world.engine.checksums()
        assert served == {entry.name: entry.digest for entry in store.manifest(2).tensors}


async def test_a_task_waits_for_the_version_that_it_demands(world: World) -> None:
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.running(world.generator(), manifest):
        await until_state(world, "waiting_for_weights")
        world.publish(1)
        (rollout,) = await world.rollouts(1)
    assert [span.weight_version for span in rollout.spans] == [1]


async def test_responses_of_a_retracted_version_start_over(world: World) -> None:
    """Version 1 is retracted while a task that demands it is sampled; the new version 1 samples the whole response."""
    engine = ScriptedEngine(step_s=SLOW_S / 2, follows_weights=True)
    world.publish(0)
    manifest = world.publish(1)
    demanding = task(0, min_weight_version=1, round=1, max_response_tokens=100)
    world.issue(demanding)
    async with world.running(world.generator(engine=engine), manifest):
        await until(lambda: engine.load().running == 1)
        await world.serves(0, world.retract_after(0).digest)
        await world.serves(1, world.publish(1, seed=50).digest)
        (rollout,) = await world.rollouts(1)
        expected = await engine.generate(demanding, 0)
    assert [span.weight_version for span in rollout.spans] == [1]
    assert rollout.response_tokens.tolist() == expected.response_tokens


async def test_a_version_that_never_comes_ends_in_an_error_that_names_it(world: World) -> None:
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=7, round=7))
    async with world.running(world.generator(deadlines=DeadlinesConfig(weights_s=0.1)), manifest) as running:
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(DeadlineError, match=r"weight-sync endpoint: version 7 \(this generator serves 0\)")


async def test_a_damaged_version_is_reported_and_not_served(world: World) -> None:
    """The files of version 1 are damaged on the endpoint's disk: version 0 generates until they are restored."""
    store = world.endpoint.store
    manifest = world.publish(0)
    async with world.running(world.generator(), manifest):
        await world.serves(0, manifest.digest)
        store.publish(1, changed(world.versions[0], 5))
        good = {path: path.read_bytes() for path in (store.folder / "00000001").glob("[dm]*.[bs]*")}
        for path, content in good.items():
            path.write_bytes(bytes(len(content)))
        await until_message(world, "weights: ")
        events = await AsyncEventLog(world.endpoint.redis, world.endpoint.keys).tail(10)
        assert [(event.source, event.kind) for event in events] == [("g0", "version_damaged")], "once in a while"
        world.issue(task(0))
        (rollout,) = await world.rollouts(1)
        assert (rollout.spans[0].weight_version, rollout.spans[0].weight_digest) == (0, manifest.digest)
        for path, content in good.items():
            path.write_bytes(content)
        await world.serves(1, store.manifest(1).digest)


async def test_a_version_replaced_while_a_generator_joins_does_not_stop_it(world: World) -> None:
    world.publish(0)
    stale = world.publish(1)
    newest = world.retract_after(0)
    async with world.running(world.generator(), stale):
        await world.serves(0, newest.digest)


async def test_a_joiner_waits_for_the_learners_first_version(world: World) -> None:
    async with world.endpoint.weights() as client:
        waiting = asyncio.create_task(wait_for_first_version(client, PATIENCE_S))
        manifest = world.publish(0)
        assert (await waiting).digest == manifest.digest


async def test_a_first_version_that_never_comes_ends_in_an_error_that_names_the_endpoint(world: World) -> None:
    async with world.endpoint.weights() as client:
        with pytest.raises(DeadlineError, match=r"endpoint: the first version \(no version was published\)"):
            await wait_for_first_version(client, 0.1)
