"""What layers derive from their weights is renewed by every update: experts are packed on CPU."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from services.tensors import RawTensor, describe
from tests.support import families
from tests.support.vllm_models import update_between

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TOKENS = [5, 9, 40, 41, 7, 100, 200, 33, 34, 35, 11, 12]
EXACT = 1e-5


async def test_experts_compute_with_the_newest_weights_and_are_digested(tmp_path: Path) -> None:
    """The first update changes everything; the second one layer, beside two that keep what they derived before."""
    import torch

    from learner.model.model_loading import load_model
    from learner.model.wire_tensors import wire_tensors

    folder = families.save(families.SERVED["qwen3-moe"], tmp_path / "model")
    model = load_model(str(folder), device="cpu")
    model.module.set_attn_implementation("eager")  # its own forward is asked here
    versions: list[dict[str, RawTensor]] = [wire_tensors(model)]
    engine = await asyncio.to_thread(
        create_engine, GeneratorConfig(max_in_flight=2, cpu_cache_gib=0.1), max_model_len=64, cache=tmp_path / "cache"
    )
    try:
        await engine.start(folder, 0)
        for version, part in enumerate(("", "layers.1."), start=1):
            with torch.no_grad():
                for name, weight in model.module.named_parameters():
                    if part in name:
                        weight.copy_((weight * (1 + 0.1 * torch.randn_like(weight))).bfloat16())
                tokens = torch.tensor([TOKENS])
                logits = model.loss_module.own_logits(tokens)[0, :-1].log_softmax(-1)
                expected = logits.gather(-1, tokens[0, 1:, None])[:, 0].tolist()
            versions.append(wire_tensors(model))
            await engine.apply(update_between(version, versions[-2], versions[-1]))
            assert await engine.checksums() == {entry.name: entry.digest for entry in describe(versions[-1])}
            assert await engine.score(TOKENS) == pytest.approx(expected, abs=EXACT)
    finally:
        await engine.stop()
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test
