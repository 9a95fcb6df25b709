"""Where the learner's settings end: the last value that is taken, and the first that is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from learner.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HealthConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainingConfig,
)
from services.config import Section

TINY = math.ulp(0.0)


@pytest.mark.parametrize(
    ("section", "name", "taken", "refused"),
    [
        (ModelConfig, "wire_dtype", ["auto", "float32", "bfloat16", "float16"], ["float64"]),
        (DataConfig, "limit", [None, 1], [0]),
        (DataConfig, "max_prompt_tokens", [1], [0]),
        (SamplingConfig, "tau_start", [TINY, 9], [0]),
        (SamplingConfig, "tau_end", [TINY, 9], [0]),
        (SamplingConfig, "schedule", ["linear", "cosine", "constant"], ["step"]),
        (SamplingConfig, "anneal_epochs", [TINY], [0]),
        (SamplingConfig, "top_p", [TINY, 1], [0, 1.0001]),
        (SamplingConfig, "max_response_tokens", [1], [0]),
        (SamplingConfig, "rollouts_per_prompt", [1, 1024], [0, 1025]),
        (TrainingConfig, "algorithm", ["nll", "entropy", "grpo"], ["ppo", "NLL"]),
        (TrainingConfig, "data", ["online", "fixed"], ["offline"]),
        (TrainingConfig, "tau_t", [TINY], [0]),
        (TrainingConfig, "epochs", [TINY], [0]),
        (TrainingConfig, "rounds", [None, 1], [0]),
        (TrainingConfig, "prompts_per_round", [2], [0]),
        (TrainingConfig, "steps_per_round", [1, 128], [0, 3, 256]),
        (TrainingConfig, "max_staleness", [0], [-1]),
        (TrainingConfig, "optimizer", ["adamw", "adamw_8bit"], ["sgd"]),
        (TrainingConfig, "learning_rate", [TINY], [0]),
        (TrainingConfig, "warmup_steps", [0], [-1]),
        (TrainingConfig, "weight_decay", [0], [-TINY]),
        (TrainingConfig, "max_grad_norm", [TINY], [0]),
        (TrainingConfig, "micro_batch_tokens", [1], [0]),
        (TrainingConfig, "ranks", [1, 64], [0]),
        (TrainingConfig, "gradient_checkpointing", ["off", "light", "full"], ["on"]),
        (LoraConfig, "rank", [0], [-1]),
        (LoraConfig, "alpha", [TINY], [0]),
        (CheckpointConfig, "every_rounds", [1], [0]),
        (CheckpointConfig, "keep", [1], [0]),
        (HealthConfig, "action", ["off", "warn", "pause", "rollback", "stop"], ["end"]),
        (EvaluationConfig, "every_rounds", [0], [-1]),
        (EvaluationConfig, "samples", [1, 1024], [0, 1025]),
        (EvaluationConfig, "limit", [None, 1], [0]),
    ],
)
def test_the_bounds_of_a_setting(section: type[Section], name: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        section.model_validate({name: value})
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            section.model_validate({name: value})


@pytest.mark.parametrize("section", [SamplingConfig, TrainingConfig, LoraConfig])
def test_no_number_is_infinite_or_none_at_all(section: type[Section]) -> None:
    floats = [name for name, field in section.model_fields.items() if field.annotation is float]
    assert floats
    for name in floats:
        for value in (math.inf, math.nan):
            with pytest.raises(ValidationError, match=name):
                section.model_validate({name: value})


def test_steps_divide_the_round() -> None:
    assert TrainingConfig(prompts_per_round=6, steps_per_round=3).steps_per_round == 3
    with pytest.raises(ValidationError, match=r"training\.steps_per_round \(4\) must divide"):
        TrainingConfig(prompts_per_round=6, steps_per_round=4)


def test_lists_are_given_as_text_too() -> None:
    assert LoraConfig.model_validate({"targets": "q_proj, v_proj"}).targets == ("q_proj", "v_proj")
    assert EvaluationConfig.model_validate({"temperatures": "0.6,1"}).temperatures == (0.6, 1.0)
