"""A run around one generator, with real queues and a real endpoint; the test acts as the learner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from generator.config import GeneratorConfig
from generator.engines.base import Engine
from generator.engines.scripted import ScriptedEngine
from generator.loop import Generator
from services.config import DeadlinesConfig
from services.contracts import Heartbeat, Rollout, Task, WeightManifest
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import QueueGauge, TaskIssuer, TaskLeaser
from services.tensors import Tensors
from services.time_accounting import StateClock
from services.weights.mirror import WeightMirror
from tests.support.endpoint import Endpoint
from tests.support.vllm_models import changed
from tests.support.weight_samples import first_version

PATIENCE_S = 20.0
SLOW_S = 0.02


@dataclass
class World:
    """A run without a learner: the test publishes versions and issues tasks."""

    endpoint: Endpoint
    folder: Path
    client: redis.Redis
    engine: ScriptedEngine = field(default_factory=lambda: ScriptedEngine(follows_weights=True))
    """The engine of a generator that is given none."""

    def __post_init__(self) -> None:
        self.issuer = TaskIssuer(self.client, self.endpoint.keys)
        self.reader = RolloutReader(self.client, self.endpoint.keys)
        self.versions: dict[int, Tensors] = {}

    def publish(self, version: int, *, seed: int = 0) -> WeightManifest:
        self.versions[version] = changed(self.versions.get(0) or first_version(), seed or version + 1)
        manifest = self.endpoint.store.publish(version, self.versions[version])
        self.endpoint.app.state.notifier.notify()
        return manifest

    def retract_after(self, after: int) -> WeightManifest:
        """Delete the later versions, as a learner that is rolled back; returns the newest that is left."""
        self.endpoint.store.retract_after(after)
        self.endpoint.app.state.notifier.notify()
        return self.endpoint.store.manifest(after)

    def generator(
        self,
        name: str = "g0",
        *,
        lease_s: float = 30.0,
        max_in_flight: int = 8,
        engine: Engine | None = None,
        deadlines: DeadlinesConfig | None = None,
        clock: StateClock | None = None,
    ) -> Generator:
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
            deadlines=deadlines or DeadlinesConfig(drain_s=5, weights_s=60),
            heartbeat_every_s=0.02,
            lease_s=lease_s,
            clock=clock or StateClock("starting"),
        )

    @asynccontextmanager
    async def running(self, generator: Generator, manifest: WeightManifest) -> AsyncIterator[asyncio.Task[None]]:
        """Run the generator for the block; it is drained at the end unless it has ended before."""
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
        """The next `count` rollouts, in the order of their arrival."""
        found: list[Rollout] = []

        def all_read() -> bool:
            found.extend(rollout for _, rollout in self.reader.read(0))
            return len(found) >= count

        await until(all_read)
        return found

    async def heartbeat(self, name: str = "g0") -> Heartbeat | None:
        beats = await AsyncHeartbeats(self.endpoint.redis, self.endpoint.keys).read_all()
        return next((beat for beat, _ in beats if beat.part_id == name), None)

    async def serves(self, version: int, digest: str) -> None:
        for _ in range(int(PATIENCE_S * 100)):
            beat = await self.heartbeat()
            if beat is not None and (beat.weight_version, beat.weight_digest) == (version, digest):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"version {version} was not served: {beat}")

    async def leasable(self) -> list[tuple[str, int]]:
        """(task, delivery) of what another generator can lease at once."""
        other = TaskLeaser(self.endpoint.redis, self.endpoint.keys, "another", 30)
        return [(lease.task.task_id, lease.deliveries) for lease in await other.lease(100, 0)]


def task(index: int, **changes: Any) -> Task:
    settings: dict[str, Any] = {
        "task_id": f"r000000-{index:05d}",
        "round": 0,
        "position": index,
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
    raise AssertionError("the condition never became true")


async def until_leased(world: World, count: int) -> None:
    gauge = QueueGauge(world.endpoint.redis, world.endpoint.keys)
    for _ in range(int(PATIENCE_S * 100)):
        leased = (await gauge.read()).tasks_leased
        if leased == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{leased} tasks are leased, not {count}")


async def until_state(world: World, state: str) -> None:
    await until_heartbeat(world, lambda beat: beat.state == state)


async def until_message(world: World, start: str) -> None:
    await until_heartbeat(world, lambda beat: beat.message.startswith(start))


async def until_heartbeat(world: World, condition: Callable[[Heartbeat], bool]) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        beat = await world.heartbeat()
        if beat is not None and condition(beat):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"no heartbeat met the condition; the last one: {beat}")
