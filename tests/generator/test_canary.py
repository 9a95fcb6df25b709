"""What an engine computes is what the learner computes, or it is reloaded, or it ends: never served."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from generator import canary
from generator.config import GeneratorConfig
from generator.engines.base import Completion, Paused, create_engine
from generator.engines.scripted import ScriptedEngine, scripted_log_probs
from services.contracts import Canary, Task, WeightManifest
from services.errors import EngineError, WeightError
from services.streams.connection import connect
from services.streams.events import AsyncEventLog, Event
from services.weights.mirror import WeightUpdate
from services.weights.tensors import RawTensor, Tensors
from tests.support.endpoint import open_endpoint
from tests.support.generator_world import PATIENCE_S, World, task, until
from tests.support.vllm_models import changed, manifest_of, write_tiny_model
from tests.support.weight_samples import first_version, next_version

TOKENS = (3, 1, 4, 1, 5)


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        with connect(redis_url) as client:
            yield World(endpoint, tmp_path / "mirrors", client, ScriptedEngine(follows_weights=True, scores=True))


def song_of(tensors: Tensors) -> list[Canary]:
    return [Canary(tokens=TOKENS, log_probs=tuple(scripted_log_probs(tensors, TOKENS)))]


def publish(world: World, version: int, *, learners: Tensors | None = None) -> WeightManifest:
    """`learners`: what the learner computes with, where that is not what it publishes."""
    world.versions[version] = next_version(world.versions[version - 1], version) if version else first_version()
    song = song_of(world.versions[version] if learners is None else learners)
    manifest = world.endpoint.store.publish(version, world.versions[version], canaries=song)
    world.endpoint.app.state.notifier.notify()
    return manifest


async def refusals(world: World) -> list[Event]:
    events = await AsyncEventLog(world.endpoint.redis, world.endpoint.keys).tail(10)
    return [event for event in events if event.kind == "canary_failed"]


class Forgetful(ScriptedEngine):
    """Loses the last patch of every update, and hears of canaries only after it has answered something so."""

    def __init__(self) -> None:
        super().__init__(follows_weights=True, scores=True, step_s=0.002)
        self.answered = asyncio.Event()
        self.loses = False

    async def generate(self, task: Task, sample: int) -> Completion:
        completion = await super().generate(task, sample)
        if self.loses:
            self.answered.set()
        return completion

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        self.loses = update.patches is not None
        kept = replace(update, patches=update.patches[:-1]) if update.patches else update
        return await super().apply(kept, paused)

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        if self.loses:
            await self.answered.wait()
        return await super().score(tokens)


async def test_a_version_that_computes_what_the_learner_computes_is_served(world: World) -> None:
    async with world.going(world.generator(), publish(world, 0)):
        for version in (1, 2):
            await world.serves(version, publish(world, version).digest)
    assert await refusals(world) == []


async def test_an_engine_that_took_an_update_wrongly_reloads_and_nothing_it_answered_meanwhile_counts(
    world: World,
) -> None:
    manifest, engine = publish(world, 0), Forgetful()
    asked = [task(index, max_response_tokens=100) for index in range(4)]
    async with world.going(world.generator(engine=engine), manifest):
        world.issue(*asked)
        await until(lambda: engine.load().running == 4)
        await world.serves(1, publish(world, 1).digest)
        rollouts = await world.rollouts(4)
    (event,) = await refusals(world)
    assert (event.source, event.fields["weight_version"]) == ("g0", 1)
    assert await right_answers(world.versions[1], asked) == {
        rollout.index: rollout.response_tokens.tolist() for rollout in rollouts
    }
    assert {len(rollout.spans) for rollout in rollouts} == {1}


async def right_answers(tensors: Tensors, asked: Sequence[Task]) -> dict[int, list[int]]:
    """What an engine says that serves these weights from the first token on."""
    engine = ScriptedEngine(follows_weights=True)
    await engine.start(Path("/nowhere"), 0)
    everything = WeightUpdate(manifest_of(1, tensors), None, frozenset(tensors), 0, tensors)
    await engine.apply(everything)
    return {each.index: (await engine.generate(each, 0)).response_tokens for each in asked}


async def test_weights_that_are_not_the_learners_end_the_generator(world: World) -> None:
    """The store, its digests and the snapshot agree with each other, and with nothing that was trained."""
    manifest = publish(world, 0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.going(world.generator(), manifest) as running:
        await world.serves(0, manifest.digest)
        publish(world, 1, learners=world.versions[0])
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(WeightError, match=r"version 1 is not the learner's.*differ from the learner's by")
    assert [event.fields["weight_version"] for event in await refusals(world)] == [1]
    assert await world.leftover() == [("r000000-00000", 1)]


async def test_a_joiner_does_not_begin_with_weights_that_are_not_the_learners(world: World) -> None:
    generator = world.generator()
    with pytest.raises(WeightError, match="version 0 is not the learner's"):
        await generator.run(publish(world, 0, learners=changed(first_version(), 9)))


@pytest.mark.parametrize(
    ("scored", "agrees"),
    [
        (None, True),
        ([-1.0, -2.0], True),
        ([-1.0009, -1.9991], True),
        ([-1.0], True),
        ([-1.0, -2.01], False),
        ([-1.0, float("nan")], False),
        ([-1.0, float("-inf")], False),
    ],
)
async def test_only_rounding_explains_a_difference(scored: list[float] | None, agrees: bool) -> None:
    class Singer(ScriptedEngine):
        async def score(self, tokens: Sequence[int]) -> list[float] | None:
            return scored

    manifest = manifest_of(0, {}).model_copy(update={"canaries": (Canary(tokens=(1, 2, 3), log_probs=(-1.0, -2.0)),)})
    assert (await canary.difference(Singer(), manifest) == "") is agrees


async def test_an_engine_that_died_is_no_false_note() -> None:
    manifest = manifest_of(0, {}).model_copy(update={"canaries": tuple(song_of({}))})
    with pytest.raises(EngineError):
        await canary.difference(ScriptedEngine(scores=True), manifest)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
async def test_vllm_serves_the_learners_versions_and_refuses_a_damaged_one(world: World, tmp_path: Path) -> None:
    """Versions 0 and 1 are the learner's; of version 2 a tensor was damaged before its digest was made."""
    import torch

    from learner.model.canary import compute_canaries
    from learner.model.hf_checkpoint import model_files
    from learner.model.model_loading import load_model
    from learner.model.wire_tensors import wire_tensors

    write_tiny_model(tmp_path / "model")
    trained, store = load_model(str(tmp_path / "model"), device="cpu"), world.endpoint.store
    manifest = store.publish(0, wire_tensors(trained), model_files(trained.folder), compute_canaries(trained, 2))
    config = GeneratorConfig(max_model_len=64, max_in_flight=4, cpu_cache_gib=0.25)
    engine = await asyncio.to_thread(create_engine, config)
    async with world.going(world.generator(engine=engine, max_in_flight=4), manifest) as running:
        await started(world)
        with torch.no_grad():
            for weight in trained.module.parameters():
                weight.mul_(1 + 0.01 * torch.randn_like(weight))
        tensors = wire_tensors(trained)
        await world.serves(1, store.publish(1, tensors, canaries=compute_canaries(trained, 2)).digest)
        assert await refusals(world) == []
        world.issue(task(0, min_weight_version=2, round=2))
        store.publish(2, damaged(tensors, "model.layers.1.mlp.down_proj.weight"), canaries=compute_canaries(trained, 2))
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(WeightError, match=r"version 2 is not the learner's.*float32 explains")
    assert [event.fields["weight_version"] for event in await refusals(world)] == [2]
    assert await world.leftover() == [("r000000-00000", 1)]
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would complain during another test


async def started(world: World) -> None:
    """vLLM takes longer than anything else is waited for."""
    for _ in range(1200):
        if await world.beat() is not None:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("vLLM did not start")


def damaged(tensors: Tensors, name: str) -> dict[str, RawTensor]:
    """One row of that tensor is lost."""
    tensor = tensors[name]
    data = tensor.data.copy()
    data[: tensor.shape[-1] * tensor.item_bytes] = 0
    return dict(tensors) | {name: RawTensor(tensor.dtype, tensor.shape, data)}
