"""What is measured on fake CUDA devices, and what a measurement says. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151_936, "max_position_embeddings": 4096}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": QWEN
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.5b": QWEN
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": QWEN
    | {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "32b": QWEN
    | {
        "vocab_size": 152_064,
        "hidden_size": 5120,
        "intermediate_size": 27_648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
"""Qwen2.5's, by the fields of config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One optimizer step of rank 0; all sequences have the same length."""

    model: dict[str, Any]
    """Fields of config.json."""
    ranks: int = 1
    gradient_checkpointing: Literal["off", "light", "full"] = "off"
    algorithm: str = "nll"
    lora_rank: int = 0
    tokens: int = 16_384
    """Budget of a micro-batch."""
    micro_batches: int = 2
    prompt_tokens: int = 150
    response_tokens: int = 1216
    training: dict[str, Any] = field(default_factory=dict)
    """Other settings of [training]."""

    @property
    def sequences(self) -> int:
        """That make `micro_batches` full ones, as `packing.global_micro_batches` closes them."""
        length = self.prompt_tokens + self.response_tokens - 1
        return self.micro_batches * ((self.ranks * self.tokens - (self.ranks - 1) * length) // length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What rank 0's step needed on its device."""

    parameters: int
    """Of the whole model."""
    weights_bytes: int
    """This rank's weights."""
    state_bytes: int
    """Weights and moments, between two steps."""
    training_peak_bytes: int
    """Most that was alive in forward and backward."""
    update_peak_bytes: int
    """Most that was alive while gradients were clipped and weights moved."""
    gradients_bytes: int
    """Alive besides the state when the update begins."""
    peak_operator: str
    """The operator at which the training peak was reached."""
    micro_batches: int
    attention_calls: int
    """Forward calls of the packed attention kernel."""
    host_to_device: int
    """Copies."""
    device_to_host: int
    items: int
    """Numbers for which the host waited."""
    launches: int
    """Operators that compute something."""
    flops: int
    """Of matrix products."""
    moved_bytes: int
    """Read and written by all operators but matrix products, attention, FSDP's copies and AdamW."""
    moved: dict[str, int]
    """The same by operator, with FSDP's and AdamW's: those that move most."""

    @property
    def peak_bytes(self) -> int:
        """Most that was alive at any time."""
        return max(self.training_peak_bytes, self.update_peak_bytes)
