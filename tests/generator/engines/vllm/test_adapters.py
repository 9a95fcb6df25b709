"""vLLM serves the merged weights of a learner with adapters: the real learner, store, endpoint, mirror and engine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from generator.canary import TOLERANCES
from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from services.contracts import FileKind, Rollout
from services.streams.connection import connect
from tests.support.canaries import canary_failures, started
from tests.support.endpoint import open_endpoint
from tests.support.generator_world import World, task, until
from tests.support.vllm_models import write_tiny_model

if TYPE_CHECKING:
    from learner.model.trained_model import TrainedModel

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROUNDS = 3
PROMPTS = 8
TEXT = [(37 * n) % 311 for n in range(1, 40)]
LONG = 3500
"""Tokens of a response that outlasts several updates: how many depends on the machine."""


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        with connect(redis_url) as client:
            yield World(endpoint, tmp_path / "mirrors", client)


@pytest.mark.parametrize("offers_adapters", [False, True])
async def test_vllm_serves_the_merged_weights_of_a_learner_with_adapters(
    world: World, tmp_path: Path, offers_adapters: bool
) -> None:
    """Every round trains on the responses of the version before, while one long response goes on."""
    from learner.config import LoraConfig, TrainingConfig
    from learner.model.canary import compute_canaries
    from learner.model.model_loading import load_model
    from learner.model.wire_tensors import wire_adapters, wire_tensors
    from learner.model_folder.files import model_files
    from learner.training.batch_sharding import TrainingSample
    from learner.training.trainer import Trainer

    write_tiny_model(tmp_path / "model")
    lora = LoraConfig(rank=4, alpha=8)
    trained = load_model(str(tmp_path / "model"), device="cpu", adapters=lora)
    training = TrainingConfig(prompts_per_round=PROMPTS, learning_rate=1e-2, warmup_steps=0, device="cpu")
    trainer, store = Trainer(trained, training), world.endpoint.store
    manifest = store.publish(0, wire_tensors(trained), model_files(trained.folder), compute_canaries(trained, 2))
    config = GeneratorConfig(max_in_flight=16, cpu_cache_gib=0.25)
    engine = await asyncio.to_thread(create_engine, config, max_model_len=LONG + 100)
    async with world.running(world.generator(engine=engine, max_in_flight=16), manifest):
        await started(world)
        long = asyncio.create_task(engine.generate(task(0, max_response_tokens=LONG), 0))
        await until(lambda: engine.load().running == 1)
        before = merged_log_probs(trained)
        assert await engine.score(TEXT) == pytest.approx(before, abs=TOLERANCES["float32"])
        for round_ in range(ROUNDS):
            trainer.train_round(map(TrainingSample, await round_rollouts(world, round_)))
            canaries, packed = compute_canaries(trained, 2), wire_adapters(trained) if offers_adapters else None
            manifest = store.publish(round_ + 1, wire_tensors(trained), canaries=canaries, packed=packed)
            (sent,) = manifest.files
            assert sent.kind is FileKind.DELTA or offers_adapters
            world.endpoint.app.state.notifier.notify()
            await world.serves(manifest.weight_version, manifest.digest)
            assert await engine.checksums() == {entry.name: entry.digest for entry in manifest.tensors}
            expected = merged_log_probs(trained)
            assert expected != pytest.approx(before, abs=100 * TOLERANCES["float32"]), (
                "the training changed the weights"
            )
            assert await engine.score(TEXT) == pytest.approx(expected, abs=TOLERANCES["float32"])
            before = expected
        spans = [span.weight_version for span in (await long).spans]
    assert len(spans) > 1, "it went on over an update"
    assert spans == list(range(len(spans)))
    assert await canary_failures(world) == []
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test


async def round_rollouts(world: World, round_: int) -> list[Rollout]:
    """The round's rollouts in task order, by its own version."""
    fields = {"round": round_, "min_weight_version": round_, "max_response_tokens": 16}
    world.issue(*(task(index, task_id=f"r{round_:06}-{index:05}", **fields) for index in range(PROMPTS)))
    rollouts = await world.rollouts(PROMPTS)
    return sorted(rollouts, key=lambda rollout: rollout.position)


def merged_log_probs(trained: TrainedModel) -> list[float]:
    """Log-probabilities of TEXT after its first token, by transformers with the published adapters merged by peft."""
    import torch

    from learner.model.lora import adapters_of, factors

    module = deepcopy(trained.module)
    for layer in adapters_of(module).values():
        b, a, scale = factors(layer)
        layer.lora_B["default"].weight.data = b * (scale / layer.scaling["default"])
        layer.lora_A["default"].weight.data = a.float()
        layer.merge()
    for weight in module.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    module.train(False)
    module.set_attn_implementation("eager")
    tokens = torch.tensor(TEXT)
    with torch.no_grad():
        log_probs = module(input_ids=tokens[None, :-1]).logits[0].log_softmax(-1)
    found: list[float] = log_probs.gather(-1, tokens[1:, None])[:, 0].tolist()
    return found
