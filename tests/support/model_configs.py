"""config.json of well-known models, written by hand: sizes without weights."""

from __future__ import annotations

from typing import Any

QWEN2 = {"model_type": "qwen2", "torch_dtype": "bfloat16", "tie_word_embeddings": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": QWEN2
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-Math-1.5B": QWEN2
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-Math-7B": QWEN2
    | {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    "Qwen2.5-32B": QWEN2
    | {
        "hidden_size": 5120,
        "intermediate_size": 27_648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
    },
    "deepseek-math-7b-instruct": {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 102_400,
    },
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
"""By the last part of the name on the hub."""
CONFIGS["Qwen2.5-7B"] = CONFIGS["Qwen2.5-7B-Instruct"] = CONFIGS["Qwen2.5-Math-7B"]  # the same sizes
