"""Tiny random models of many families, large enough for vLLM's kernels, each with a tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.tokenizers import save_byte_tokenizer

VOCABULARY = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.09,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 32}
WINDOW = {"sliding_window": 16}
EXPERTS = {"num_experts_per_tok": 2}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


class Family(NamedTuple):
    """A configuration of transformers, and how its weights are stored."""

    config: str
    changes: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    shards: str = "1GB"
    """Largest file of weights."""


SERVED = {
    "qwen2-tied": Family("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-untied": Family("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen2-sharded": Family("Qwen2Config", {"tie_word_embeddings": False}, shards="200KB"),
    "qwen2-float16": Family("Qwen2Config", {"tie_word_embeddings": False}, dtype=torch.float16),
    "qwen2-float32": Family("Qwen2Config", {"tie_word_embeddings": True}, dtype=torch.float32),
    "qwen3": Family("Qwen3Config", HEAD),
    "llama3-rope": Family(
        "LlamaConfig",
        HEAD
        | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        {**HEAD, **WINDOW, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "mistral-windows": Family("MistralConfig", HEAD | WINDOW),
    "phi3": Family("Phi3Config", {}),
    "olmo2": Family("Olmo2Config", {}),
    "glm4": Family("Glm4Config", {**HEAD, "attention_bias": True, "partial_rotary_factor": 0.5}),
    "smollm3": Family("SmolLM3Config", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "starcoder2-dropout": Family(
        "Starcoder2Config",
        {"sliding_window": None, "residual_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1},
    ),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        {**HEAD, **EXPERTS, "num_experts": 8, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "mixtral-jitter": Family(
        "MixtralConfig", {**EXPERTS, "num_local_experts": 4, "sliding_window": None, "router_jitter_noise": 0.1}
    ),
}
"""Families that learner and engine compute alike."""

LONG_FACTORS = {"short_factor": [1.0] * 16, "long_factor": [2.0 + 0.2 * i for i in range(16)]}
REFUSED = {
    "gemma2": (Family("Gemma2Config", {**HEAD, **WINDOW, "query_pre_attn_scalar": 32}), "asks for capped scores"),
    "gpt-oss": (
        Family("GptOssConfig", {**HEAD, **WINDOW, **EXPERTS, "num_local_experts": 4, **rope("default")}),
        "attention sinks",
    ),
    "granite": (Family("GraniteConfig", {"logits_scaling": 8.0}), "differ from its own"),
    "cohere": (Family("CohereConfig", {"tie_word_embeddings": True}), "differ from its own"),
    "falcon": (Family("FalconConfig", {"alibi": False, "bias": False}), "attention of its own"),
    "llama-dynamic-ntk": (
        Family("LlamaConfig", {**HEAD, "max_position_embeddings": 64, **rope("dynamic", factor=4.0)}),
        "also for one sequence at a time",
    ),
}
"""Families that the learner refuses, with words of its reason."""
REFUSED_BY_ENGINE = {
    "qwen2-windows-in-some-layers": (
        Family("Qwen2Config", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
        "Sliding window for some but all layers",
    ),
    "phi3-longrope-beyond": (
        Family(
            "Phi3Config",
            {
                "original_max_position_embeddings": 64,
                **rope("longrope", original_max_position_embeddings=64, **LONG_FACTORS),
            },
        ),
        "freshly loaded",
    ),
}
"""Families that the learner trains and vLLM does not serve, or computes otherwise, with words of the reason."""


def save(family: Family, folder: Path) -> Path:
    """A random model of the family in `folder`."""
    torch.manual_seed(1)
    config = getattr(transformers, family.config)(**SHAPE | family.changes)
    made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model: PreTrainedModel = made
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name.lower() else 0.05))
    stored: Any = model.to(family.dtype)  # type: ignore[arg-type]
    stored.save_pretrained(folder, max_shard_size=family.shards)
    return save_byte_tokenizer(folder)
