"""The estimate against what the learner's own step takes: on fake CUDA devices, and of resident memory on CPU."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from learner.config import DataConfig, LearnerSettings, LoraConfig, SamplingConfig, TrainingConfig
from learner.memory.model_shape import ModelShape, shape_of_config
from learner.memory.rank_memory import RankMemory, estimate_rank
from tests.support.fake_cuda.runs import measure_all, needs_compiler
from tests.support.fake_cuda.scenario import Scenario
from tests.support.model_configs import CONFIGS

GIB = 1 << 30
TOLERANCE = 0.15


def scenario(name: str, layers: int, **fields: Any) -> Scenario:
    """A well-known model's shape with fewer layers, so that a measurement takes a second."""
    config = {key: value for key, value in CONFIGS[name].items() if key != "torch_dtype"}
    return Scenario(model=config | {"num_hidden_layers": layers, "max_position_embeddings": 4096}, **fields)


SCENARIOS = {
    "0.5B off": scenario("Qwen2.5-0.5B", 3),
    "0.5B light": scenario("Qwen2.5-0.5B", 3, gradient_checkpointing="light"),
    "0.5B full": scenario("Qwen2.5-0.5B", 3, gradient_checkpointing="full"),
    "0.5B few tokens": scenario("Qwen2.5-0.5B", 3, tokens=2048, prompt_tokens=64, response_tokens=449),
    "1.5B off": scenario("Qwen2.5-Math-1.5B", 2),
    "1.5B light, 2 ranks": scenario("Qwen2.5-Math-1.5B", 2, gradient_checkpointing="light", ranks=2),
    "1.5B adapters": scenario("Qwen2.5-Math-1.5B", 2, lora_rank=16),
    "1.5B entropy": scenario("Qwen2.5-Math-1.5B", 2, gradient_checkpointing="full", algorithm="entropy"),
    "7B full, 4 ranks": scenario("Qwen2.5-Math-7B", 2, gradient_checkpointing="full", ranks=4),
    "7B full, 8 ranks": scenario("Qwen2.5-Math-7B", 2, gradient_checkpointing="full", ranks=8),
    "7B off, 8 ranks": scenario("Qwen2.5-Math-7B", 2, ranks=8, tokens=8192),
    "8B full, 4 ranks": scenario("Llama-3.1-8B-Instruct", 2, gradient_checkpointing="full", ranks=4, tokens=8192),
    "7B light, many heads": scenario("deepseek-math-7b-instruct", 2, gradient_checkpointing="light", ranks=4),
    "32B full, 16 ranks": scenario("Qwen2.5-32B", 2, gradient_checkpointing="full", ranks=16),
}


def estimated(scenario: Scenario) -> RankMemory:
    shape = shape_of(scenario.model)
    training = TrainingConfig(
        algorithm=scenario.algorithm,
        prompts_per_round=scenario.sequences,
        steps_per_round=1,
        micro_batch_tokens=scenario.tokens,
        ranks=scenario.ranks,
        **scenario.training,
    )
    settings = LearnerSettings(
        data=DataConfig(max_prompt_tokens=scenario.prompt_tokens),
        sampling=SamplingConfig(max_response_tokens=scenario.response_tokens),
        training=training,
        lora=LoraConfig(rank=scenario.lora_rank),
    )
    return estimate_rank(shape, settings, device="cuda", recomputation=scenario.gradient_checkpointing)


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = shape_of_config(config | {"torch_dtype": "bfloat16"})
    assert shape is not None
    return shape


QUICK = ("0.5B off", "1.5B light, 2 ranks", "7B full, 4 ranks")


@needs_compiler
@pytest.mark.parametrize("names", [pytest.param(tuple(SCENARIOS), marks=pytest.mark.slow, id="all"), QUICK])
def test_on_cuda_the_estimate_is_what_a_step_allocates(names: tuple[str, ...]) -> None:
    """Of so many shapes, ranks, modes and algorithms; where this fails, the numbers of the module have to follow."""
    rows = []
    for name, measured in zip(names, measure_all([SCENARIOS[name] for name in names]), strict=True):
        estimate = estimated(SCENARIOS[name])
        error = estimate.tensors / measured.peak_bytes - 1
        rows.append((error, f"{name}: {measured.peak_bytes / GIB:.2f} GiB measured, {error:+.1%}, {asdict(estimate)}"))
    assert all(abs(error) <= TOLERANCE for error, _ in rows), "\n".join(row for _, row in rows)


def test_the_models_of_the_paper_fit_where_they_are_said_to() -> None:
    """Of a whole rank, with what CUDA's libraries take."""
    full = TrainingConfig(gradient_checkpointing="full", ranks=4)
    settings = LearnerSettings(training=full)
    seven = shape_of(CONFIGS["Qwen2.5-Math-7B"])
    assert estimate_rank(seven, settings, device="cuda", recomputation="full").total < 45 * GIB
    eight = settings.model_copy(update={"training": full.model_copy(update={"ranks": 8})})
    assert estimate_rank(seven, eight, device="cuda", recomputation="full").total < 30 * GIB
    sixteen = settings.model_copy(update={"training": full.model_copy(update={"ranks": 16})})
    big = shape_of(CONFIGS["Qwen2.5-32B"])
    assert estimate_rank(big, sixteen, device="cuda", recomputation="full").total < 79 * GIB


def test_moments_of_8_bits_and_adapters_take_what_they_are_said_to() -> None:
    shape, settings = shape_of(CONFIGS["Qwen2.5-0.5B"]), LearnerSettings()
    whole = estimate_rank(shape, settings, device="cuda", recomputation="full")
    assert (whole.weights, whole.gradients, whole.moments) == tuple(k * shape.parameters for k in (4, 4, 8))
    in_8_bits = settings.model_copy(update={"training": TrainingConfig(optimizer="adamw_8bit")})
    assert estimate_rank(shape, in_8_bits, device="cuda", recomputation="full").moments == 2 * shape.parameters
    adapters = settings.model_copy(update={"lora": LoraConfig(rank=8)})
    few = estimate_rank(shape, adapters, device="cuda", recomputation="full")
    assert few.gradients + few.moments < whole.gradients / 30
    frozen_in_float32 = replace(shape, published_bytes=4 * shape.parameters)
    assert estimate_rank(frozen_in_float32, adapters, device="cuda", recomputation="full").weights > few.weights
