"""An engine that computes something else than the learner is reloaded or ends: its responses are never used."""

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
from generator.engines.base import Completion, Paused
from generator.engines.create import create_engine
from generator.engines.scripted import ScriptedEngine, scripted_log_probs
from services.contracts import Canary, Task, WeightManifest
from services.errors import EngineError, ModelError, WeightError
from services.streams.connection import connect
from services.tensors import RawTensor, Tensors
from services.weights.mirror import WeightUpdate
from tests.support.canaries import canary_failures, started
from tests.support.endpoint import open_endpoint
from tests.support.generator_world import PATIENCE_S, World, task, until
from tests.support.vllm_models import changed, manifest_of, write_tiny_model
from tests.support.weight_samples import first_version, next_version

TOKENS = (3, 1, 4, 1, 5)


def scripted_canaries(tensors: Tensors) -> list[Canary]:
    return [Canary(tokens=TOKENS, log_probs=tuple(scripted_log_probs(tensors, TOKENS)))]


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        with connect(redis_url) as client:
            yield World(endpoint, tmp_path / "mirrors", client, ScriptedEngine(follows_weights=True, scores=True))


def publish(world: World, version: int, *, learners: Tensors | None = None) -> WeightManifest:
    """`learners`: the tensors that the learner computes with, where they differ from those it publishes."""
    world.versions[version] = next_version(world.versions[version - 1], version) if version else first_version()
    canaries = scripted_canaries(world.versions[version] if learners is None else learners)
    manifest = world.endpoint.store.publish(version, world.versions[version], canaries=canaries)
    world.endpoint.app.state.notifier.notify()
    return manifest


class LosesPatches(ScriptedEngine):
    """Loses the last patch of every update, and scores canaries only after it has completed a response with it."""

    def __init__(self) -> None:
        super().__init__(follows_weights=True, scores=True, step_s=0.002)
        self.answered = asyncio.Event()
        self.damaged = False

    async def generate(self, task: Task, sample: int) -> Completion:
        completion = await super().generate(task, sample)
        if self.damaged:
            self.answered.set()
        return completion

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        self.damaged = update.patches is not None
        kept = replace(update, patches=update.patches[:-1]) if update.patches else update
        return await super().apply(kept, paused)

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        if self.damaged:
            await self.answered.wait()
        return await super().score(tokens)


async def test_a_version_that_computes_what_the_learner_computes_is_served(world: World) -> None:
    async with world.running(world.generator(), publish(world, 0)):
        for version in (1, 2):
            await world.serves(version, publish(world, version).digest)
    assert await canary_failures(world) == []


async def test_an_engine_with_wrong_weights_reloads_and_what_it_sampled_with_them_is_discarded(
    world: World,
) -> None:
    manifest, engine = publish(world, 0), LosesPatches()
    tasks = [task(index, max_response_tokens=100) for index in range(4)]
    async with world.running(world.generator(engine=engine), manifest):
        world.issue(*tasks)
        await until(lambda: engine.load().running == 4)
        await world.serves(1, publish(world, 1).digest)
        rollouts = await world.rollouts(4)
    (event,) = await canary_failures(world)
    assert (event.source, event.fields["weight_version"]) == ("g0", 1)
    assert await expected_responses(world.versions[1], tasks) == {
        rollout.position: rollout.response_tokens.tolist() for rollout in rollouts
    }
    assert {len(rollout.spans) for rollout in rollouts} == {1}


async def expected_responses(tensors: Tensors, tasks: Sequence[Task]) -> dict[int, list[int]]:
    """The responses of an engine that serves these weights from the first token on."""
    engine = ScriptedEngine(follows_weights=True)
    await engine.start(Path("/nowhere"), 0)
    await engine.apply(WeightUpdate(manifest_of(1, tensors), None, frozenset(tensors), 0, tensors))
    return {each.position: (await engine.generate(each, 0)).response_tokens for each in tasks}


async def test_weights_that_are_not_the_learners_end_the_generator(world: World) -> None:
    """The store, its digests and the snapshot agree with each other, but not with the learner."""
    manifest = publish(world, 0)
    world.issue(task(0, min_weight_version=1, round=1))
    async with world.running(world.generator(), manifest) as running:
        await world.serves(0, manifest.digest)
        publish(world, 1, learners=world.versions[0])
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(WeightError, match=r"version 1 is not the learner's.*differ from the learner's by")
    assert [event.fields["weight_version"] for event in await canary_failures(world)] == [1]
    assert await world.leasable() == [("r000000-00000", 1)]


async def test_a_generator_does_not_start_with_weights_that_are_not_the_learners(world: World) -> None:
    generator = world.generator()
    with pytest.raises(ModelError, match=r"another function than the learner.*version 0, freshly loaded"):
        await generator.run(publish(world, 0, learners=changed(first_version(), 9)))
    assert [event.fields["weight_version"] for event in await canary_failures(world)] == [0]


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
    class Scoring(ScriptedEngine):
        async def score(self, tokens: Sequence[int]) -> list[float] | None:
            return scored

    manifest = manifest_of(0, {}).model_copy(update={"canaries": (Canary(tokens=(1, 2, 3), log_probs=(-1.0, -2.0)),)})
    assert (await canary.describe_mismatch(Scoring(), manifest) == "") is agrees


async def test_a_long_canary_is_about_its_end() -> None:
    class Scoring(ScriptedEngine):
        async def score(self, tokens: Sequence[int]) -> list[float] | None:
            return [-1.0] * 999 + [-1.01] * canary.COMPARED

    right = (-1.0,) * (999 + canary.COMPARED)
    long = Canary(tokens=tuple(range(len(right) + 1)), log_probs=right)
    mismatch = await canary.describe_mismatch(Scoring(), manifest_of(0, {}).model_copy(update={"canaries": (long,)}))
    assert "differ from the learner's by 0.01" in mismatch


async def test_an_engine_that_died_is_an_error_and_not_a_mismatch() -> None:
    manifest = manifest_of(0, {}).model_copy(update={"canaries": tuple(scripted_canaries({}))})
    with pytest.raises(EngineError):
        await canary.describe_mismatch(ScriptedEngine(scores=True), manifest)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
async def test_vllm_serves_the_learners_versions_and_rejects_a_damaged_one(world: World, tmp_path: Path) -> None:
    """Versions 0 and 1 are the learner's; of version 2 a tensor was damaged before its digest was made."""
    import torch

    from learner.model.canary import compute_canaries
    from learner.model.model_loading import load_model
    from learner.model.wire_tensors import wire_tensors
    from learner.model_folder.files import model_files

    write_tiny_model(tmp_path / "model")
    trained, store = load_model(str(tmp_path / "model"), device="cpu"), world.endpoint.store
    manifest = store.publish(0, wire_tensors(trained), model_files(trained.folder), compute_canaries(trained, 2))
    config = GeneratorConfig(max_in_flight=4, cpu_cache_gib=0.25)
    engine = await asyncio.to_thread(create_engine, config, max_model_len=64)
    async with world.running(world.generator(engine=engine, max_in_flight=4), manifest) as running:
        await started(world)
        with torch.no_grad():
            for weight in trained.module.parameters():
                weight.mul_(1 + 0.01 * torch.randn_like(weight))
        tensors = wire_tensors(trained)
        await world.serves(1, store.publish(1, tensors, canaries=compute_canaries(trained, 2)).digest)
        assert await canary_failures(world) == []
        world.issue(task(0, min_weight_version=2, round=2))
        store.publish(2, damaged(tensors, "model.layers.1.mlp.down_proj.weight"), canaries=compute_canaries(trained, 2))
        with pytest.raises(ExceptionGroup) as failure:
            await asyncio.wait_for(running, PATIENCE_S)
    assert failure.group_contains(WeightError, match=r"version 2 is not the learner's.*float32 explains")
    assert [event.fields["weight_version"] for event in await canary_failures(world)] == [2]
    assert await world.leasable() == [("r000000-00000", 1)]
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test


def damaged(tensors: Tensors, name: str) -> dict[str, RawTensor]:
    """The tensors with one row of that one set to zero."""
    tensor = tensors[name]
    data = tensor.data.copy()
    data[: tensor.shape[-1] * tensor.item_bytes] = 0
    return dict(tensors) | {name: RawTensor(tensor.dtype, tensor.shape, data)}
