"""Models of a few thousand random weights, and rollouts for them. torch computes on one thread in these tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from learner.config import Recomputation, TrainingConfig
from learner.model.model_loading import load_model
from learner.model.trained_model import TrainedModel
from learner.training.batch_sharding import TrainingSample
from services.contracts import Rollout, VersionSpan

torch.set_num_threads(1)

VOCABULARY = 67
END = "</s>"
"""Text of the token that ends a response."""
Family = Literal["qwen2", "llama"]
Ids = Sequence[int] | np.ndarray[Any, np.dtype[np.int32]]

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that distributions are far from uniform.
    "initializer_range": 0.3,
}


def config(family: Family = "qwen2", **changes: Any) -> PreTrainedConfig:
    """Qwen2 ties its embeddings here and groups its heads; Llama does neither."""
    if family == "qwen2":
        return Qwen2Config(**(SHAPE | {"tie_word_embeddings": True} | changes))
    return LlamaConfig(**(SHAPE | {"tie_word_embeddings": False, "num_key_value_heads": 4} | changes))


def save(
    folder: Path, configuration: PreTrainedConfig | None = None, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """A folder with a random model of this configuration."""
    torch.manual_seed(seed)
    module: PreTrainedModel = AutoModelForCausalLM.from_config(configuration or config())  # type: ignore[no-untyped-call]
    module.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


def save_with_words(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A random model with a tokenizer of one token per number, so that an answer reads "5 17 3"; there is no 2."""
    save(folder, dtype=dtype)
    end = SHAPE["eos_token_id"]
    words = Tokenizer(WordLevel({END if n == end else str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    fast(tokenizer_object=words, eos_token=END).save_pretrained(folder)
    return folder


def recomputation_of(config: TrainingConfig) -> Recomputation:
    """As a learner chooses: a tiny model fits without."""
    return "off" if config.gradient_checkpointing == "auto" else config.gradient_checkpointing


def load(folder: Path, configuration: PreTrainedConfig | None = None, **options: Any) -> TrainedModel:
    """A random model as the learner loads it."""
    return load_model(str(save(folder, configuration)), device="cpu", **options)


def tokens(generator: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """[count] random token ids."""
    return generator.integers(0, VOCABULARY, count).astype(np.int32)


def rollout(index: int, prompt: Ids, response: Ids, sample: int = 0) -> Rollout:
    """A finished rollout of round 0."""
    return Rollout(
        task_id=f"r000000-{index:05d}",
        sample=sample,
        round=0,
        position=index,
        prompt_tokens=np.asarray(prompt),
        response_tokens=np.asarray(response),
        finish_reason="stop",
        temperature=1.0,
        spans=(VersionSpan(weight_version=0, start=0, end=len(response)),),
        generator_id="g",
        queued_s=0.0,
        generate_s=0.0,
    )


def rollouts(prompts: int = 8, samples: int = 1, seed: int = 0) -> list[Rollout]:
    """A round of random rollouts whose lengths differ."""
    generator = np.random.default_rng(seed)
    finished: list[Rollout] = []
    for index in range(prompts):
        prompt = tokens(generator, int(generator.integers(1, 7)))
        responses = [tokens(generator, int(generator.integers(1, 10))) for _ in range(samples)]
        finished.extend(rollout(index, prompt, response, sample) for sample, response in enumerate(responses))
    return finished


def samples(prompts: int = 8, samples: int = 1, seed: int = 0) -> list[TrainingSample]:
    """`rollouts` as a trainer without signals takes them."""
    return [TrainingSample(rollout) for rollout in rollouts(prompts, samples, seed)]


def training(**changes: Any) -> TrainingConfig:
    """Settings of a round of 8 prompts in 2 steps, with a rate at which float32 shows what a step did."""
    defaults = {"prompts_per_round": 8, "steps_per_round": 2, "learning_rate": 1e-3, "warmup_steps": 0, "device": "cpu"}
    return TrainingConfig(**(defaults | changes))
