"""A generator among real queues and a real endpoint: it follows versions up and down, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from generator.config import GeneratorConfig
from generator.engine import Completion, Engine
from generator.loop import Generator
from generator.scripted_engine import ScriptedEngine
from services.clock import StateClock
from services.config import DeadlinesConfig, HeartbeatConfig
from services.contracts import Heartbeat, Rollout, Task, WeightManifest
from services.errors import DeadlineError, EngineError
from services.streams.connection import connect
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import QueueGauge, TaskIssuer, TaskLeaser
from services.weights.mirror import WeightMirror
from services.weights.tensors import Tensors
from tests.generator.models import changed
from tests.services.endpoint import Endpoint, open_endpoint
from tests.services.streams.builders import expire
from tests.services.weights.samples import first_version

PATIENCE_S = 20.0
SLOW_S = 0.02


@dataclass
class World:
    """A run without a learner: the test publishes and issues in its place."""

    endpoint: Endpoint
    folder: Path
    client: redis.Redis
    engine: ScriptedEngine = field(default_factory=lambda: ScriptedEngine(follows_weights=True))
    deadlines: DeadlinesConfig = field(default_factory=lambda: DeadlinesConfig(drain_s=5, weights_s=60))

    def __post_init__(self) -> None:
        self.issuer = TaskIssuer(self.client, self.endpoint.keys)
        self.reader = RolloutReader(self.client, self.endpoint.keys)
        self.versions: dict[int, Tensors] = {}

    def publish(self, version: int, *, seed: int = 0) -> WeightManifest:
        self.versions[version] = changed(self.versions.get(0) or first_version(), seed or version + 1)
        manifest = self.endpoint.store.publish(version, self.versions[version])
        self.endpoint.app.state.notices.wake()
        return manifest

    def take_back(self, after: int) -> WeightManifest:
        """Drop the later versions, as a learner that goes back; the newest that is left."""
        self.endpoint.store.drop_after(after)
        self.endpoint.app.state.notices.wake()
        return self.endpoint.store.manifest(after)

    def generator(
        self, name: str = "g0", *, lease_s: float = 30.0, max_in_flight: int = 8, engine: Engine | None = None
    ) -> Generator:
        self.clock = StateClock("starting")
        weights = self.endpoint.weights()
        return Generator(
            name,
            engine or self.engine,
            WeightMirror(self.folder / name, weights),
            weights,
            TaskLeaser(self.endpoint.redis, self.endpoint.keys, name, lease_s),
            AsyncHeartbeats(self.endpoint.redis, self.endpoint.keys),
            AsyncEventLog(self.endpoint.redis, self.endpoint.keys),
            config=GeneratorConfig(engine="scripted", max_in_flight=max_in_flight),
            deadlines=self.deadlines,
            heartbeat=HeartbeatConfig(every_s=0.02),
            lease_s=lease_s,
            clock=self.clock,
        )

    @asynccontextmanager
    async def going(self, generator: Generator, manifest: WeightManifest) -> AsyncIterator[asyncio.Task[None]]:
        """The generator at work; drained at the end of the block, unless it has ended before."""
        running = asyncio.create_task(generator.run(manifest))
        try:
            yield running
            if not running.done():
                generator.drain()
                await asyncio.wait_for(running, PATIENCE_S)
        finally:
            running.cancel()
            await asyncio.wait((running,))

    def issue(self, *tasks: Task) -> None:
        assert self.issuer.issue(tasks) == len(tasks)

    async def rollouts(self, count: int) -> list[Rollout]:
        """So many rollouts, as they come."""
        found: list[Rollout] = []

        def look() -> bool:
            found.extend(rollout for _, rollout in self.reader.read(0))
            return len(found) >= count

        await until(look)
        return found

    async def beat(self, name: str = "g0") -> Heartbeat | None:
        beats = await AsyncHeartbeats(self.endpoint.redis, self.endpoint.keys).read_all()
        return next((beat for beat, _ in beats if beat.part_id == name), None)

    async def serves(self, version: int, digest: str) -> None:
        for _ in range(int(PATIENCE_S * 100)):
            beat = await self.beat()
            if beat is not None and (beat.weight_version, beat.weight_digest) == (version, digest):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"version {version} was never served: {beat}")

    async def leftover(self) -> list[tuple[str, int]]:
        """(task, delivery) of what another generator gets at once."""
        other = TaskLeaser(self.endpoint.redis, self.endpoint.keys, "another", 30)
        return [(lease.task.task_id, lease.deliveries) for lease in await other.lease(100, 0)]


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        with connect(redis_url) as client:
            yield World(endpoint, tmp_path / "mirrors", client)


def task(index: int, **changes: Any) -> Task:
    settings: dict[str, Any] = {
        "task_id": f"r000000-{index:05d}",
        "round": 0,
        "index": index,
        "prompt_tokens": [index, 7],
        "temperature": 0.6,
        "max_response_tokens": 4,
        "min_weight_version": 0,
    }
    return Task(**(settings | changes))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def test_it_answers_every_sample_of_every_task(world: World) -> None:
    manifest = world.publish(0)
    world.issue(*(task(index, samples=2) for index in range(20)))
    async with world.going(world.generator(), manifest):
        rollouts = await world.rollouts(40)
    assert {rollout.rollout_id for rollout in rollouts} == {f"r000000-{n:05d}.{s}" for n in range(20) for s in (0, 1)}
    assert all(rollout.generator_id == "g0" and rollout.spans[0].weight_version == 0 for rollout in rollouts)
    assert await world.beat() is None, "one that left in order is not shown as lost"


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


async def test_every_second_is_accounted_to_what_it_was_spent_on(world: World) -> None:
    """Starting, waiting for tasks, for weights, generating, paused for an update: together the wall time."""
    world.engine = ScriptedEngine(step_s=SLOW_S, follows_weights=True)
    began = time.monotonic()
    generator = world.generator()
    manifest = world.publish(0)
    async with world.going(generator, manifest):
        await until_state(world, "waiting_for_tasks")
        starting_s = world.clock.seconds()["starting"]
        world.issue(task(0, min_weight_version=1, round=1), task(1, min_weight_version=2, round=2))
        await until_state(world, "waiting_for_weights")
        world.publish(1)
        (first,) = await world.rollouts(1)
        world.publish(2)
        (second,) = await world.rollouts(1)
        seconds = world.clock.seconds()
        wall_s = time.monotonic() - began
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=0.02)
    assert seconds.keys() == {"starting", "waiting_for_tasks", "waiting_for_weights", "generating", "updating"}
    assert seconds["starting"] == starting_s, "nothing later counts as starting"
    slept_s = SLOW_S * (first.response_tokens.size + second.response_tokens.size - 2)
    assert slept_s <= seconds["generating"] <= first.generate_s + second.generate_s
    assert 0 < seconds["updating"] < 0.5 * wall_s


async def test_it_follows_versions_up_anew_and_down(world: World) -> None:
    """Up; the same version with other bytes; and back to an older one, as after a learner that went back."""
    store = world.endpoint.store
    manifest = world.publish(0)
    async with world.going(world.generator(), manifest):
        await world.serves(0, manifest.digest)
        for version in (1, 2, 3):
            await world.serves(version, world.publish(version).digest)
        await world.serves(3, world.publish(3, seed=99).digest)
        await world.serves(1, world.take_back(after=1).digest)
        served = await world.engine.checksums()
        assert served == {entry.name: entry.digest for entry in store.manifest(1).tensors}
        await world.serves(2, world.publish(2, seed=77).digest)
        served = await world.engine.checksums()
        assert served == {entry.name: entry.digest for entry in store.manifest(2).tensors}


async def test_a_task_waits_for_the_version_that_it_asks_for(world: World) -> None:
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.going(world.generator(), manifest):
        await until_state(world, "waiting_for_weights")
        world.publish(1)
        (rollout,) = await world.rollouts(1)
    assert [span.weight_version for span in rollout.spans] == [1]


async def test_what_a_version_taken_back_had_begun_is_begun_anew(world: World) -> None:
    """Version 1 is taken back while a task that asks for it grows; the answer is wholly of the new version 1."""
    world.engine = ScriptedEngine(step_s=SLOW_S / 2, follows_weights=True)
    world.publish(0)
    manifest = world.publish(1)
    asked = task(0, min_weight_version=1, round=1, max_response_tokens=100)
    world.issue(asked)
    async with world.going(world.generator(), manifest):
        await until(lambda: world.engine.load().running == 1)
        await world.serves(0, world.take_back(after=0).digest)
        await world.serves(1, world.publish(1, seed=50).digest)
        (rollout,) = await world.rollouts(1)
        expected = await world.engine.generate(asked, 0)
    assert [span.weight_version for span in rollout.spans] == [1]
    assert rollout.response_tokens.tolist() == expected.response_tokens


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


async def test_work_whose_lease_another_took_is_stopped(world: World) -> None:
    world.engine = ScriptedEngine(step_s=60)
    manifest = world.publish(0)
    world.issue(task(0))
    endpoint = world.endpoint
    async with world.going(world.generator(lease_s=0.3), manifest) as running:
        await until(lambda: world.engine.load().running == 1)
        other = TaskLeaser(endpoint.redis, endpoint.keys, "another", 0.001)
        ((entry_id, _),) = world.client.xrange(endpoint.keys.tasks)  # type: ignore[misc]
        assert isinstance(entry_id, bytes)
        await expire(endpoint.redis, endpoint.keys, entry_id)
        assert len(await other.lease(1, 0)) == 1
        await until(lambda: world.engine.load().running == 0)
        assert not running.done(), "it goes on with other work"


async def test_leases_are_renewed_for_as_long_as_the_work_takes(world: World) -> None:
    world.engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=40))
    async with world.going(world.generator(lease_s=0.2), manifest):
        (rollout,) = await world.rollouts(1)
    assert rollout.generate_s > 0.2
    assert await world.leftover() == []


async def test_an_engine_that_dies_ends_the_generator_and_its_leases_go_back(world: World) -> None:
    world.engine = ScriptedEngine(step_s=SLOW_S)
    manifest = world.publish(0)
    world.issue(task(0, max_response_tokens=1000))
    async with world.going(world.generator(), manifest) as running:
        await until(lambda: world.engine.load().running == 1)
        world.engine.die("out of memory")
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(EngineError, match="out of memory")
    assert await world.leftover() == [("r000000-00000", 1)]


async def test_a_version_that_never_comes_ends_in_an_error_that_names_it(world: World) -> None:
    world.deadlines = DeadlinesConfig(weights_s=0.1)
    manifest = world.publish(0)
    world.issue(task(0, min_weight_version=7, round=7))
    async with world.going(world.generator(), manifest) as running:
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(DeadlineError, match=r"weight-sync endpoint: version 7 \(this generator serves 0\)")


async def test_a_damaged_version_is_not_served_and_said_so(world: World) -> None:
    """The files of version 1 rot on the endpoint's disk: generation goes on with version 0 until they are mended."""
    store = world.endpoint.store
    manifest = world.publish(0)
    async with world.going(world.generator(), manifest):
        await world.serves(0, manifest.digest)
        store.publish(1, changed(world.versions[0], 5))
        good = {path: path.read_bytes() for path in (store.folder / "00000001").glob("[dm]*.[bs]*")}
        for path, content in good.items():
            path.write_bytes(bytes(len(content)))
        await until_message(world, "weights: ")
        world.issue(task(0))
        (rollout,) = await world.rollouts(1)
        assert rollout.spans[0].weight_version == 0
        for path, content in good.items():
            path.write_bytes(content)
        await world.serves(1, store.manifest(1).digest)


async def test_a_version_replaced_while_a_generator_joins_does_not_stop_it(world: World) -> None:
    world.publish(0)
    stale = world.publish(1)
    newest = world.take_back(after=0)
    async with world.going(world.generator(), stale):
        await world.serves(0, newest.digest)


async def test_one_that_starts_again_takes_up_its_mirror(world: World) -> None:
    manifest = world.publish(0)
    for _ in range(2):
        world.engine = ScriptedEngine()
        async with world.going(world.generator(), manifest):
            await world.serves(0, manifest.digest)


async def test_it_bears_a_redis_that_comes_back_empty(world: World) -> None:
    manifest = world.publish(0)
    world.engine = ScriptedEngine(step_s=SLOW_S)
    world.issue(task(0, max_response_tokens=20))
    async with world.going(world.generator(lease_s=0.2), manifest):
        await until(lambda: world.engine.load().running == 1)
        world.client.flushall()
        assert not world.issuer.alive()
        world.issue(task(0, max_response_tokens=20), task(1))
        rollouts = await world.rollouts(2)
    assert {rollout.rollout_id for rollout in rollouts} == {"r000000-00000.0", "r000000-00001.0"}


async def until_leased(world: World, count: int) -> None:
    gauge = QueueGauge(world.endpoint.redis, world.endpoint.keys)
    for _ in range(int(PATIENCE_S * 100)):
        leased = (await gauge.read()).tasks_leased
        if leased == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {count} tasks were leased, but {leased}")


async def until_state(world: World, state: str) -> None:
    await until_beat(world, lambda beat: beat.state == state)


async def until_message(world: World, start: str) -> None:
    await until_beat(world, lambda beat: beat.message.startswith(start))


async def until_beat(world: World, right: Callable[[Heartbeat], bool]) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        beat = await world.beat()
        if beat is not None and right(beat):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"no heartbeat was like that: {beat}")
