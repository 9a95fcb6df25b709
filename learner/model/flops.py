"""Counts the floating-point operations of a sequence, from the model's shape.

A forward pass over a sequence of L tokens of which R predict a response token takes

    2 P L  +  4 n d (L^2 / 2)  +  2 H V R

operations. P: weights that a token is multiplied by, whatever class of layer holds them: all tensors of two or more
dimensions but embeddings, and of experts as many as a token is sent to. n: layers with attention of width d = heads x
head size; its scores and its weighted values take 2 d per pair of tokens each, and causal attention needs half of the
pairs. Windows and recurrent states are not counted. The head has H x V weights. The backward pass takes twice as many
operations. What gradient checkpointing computes again is not counted, as MFU is about the model (Chowdhery et al.,
arXiv 2204.02311, appendix B, there without the halving).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from learner.model_folder.config_facts import attention_layers, attention_width, expert_count, experts_of_a_token

BACKWARD = 2
"""Operations of the backward pass per operation of the forward pass."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of a forward pass: a L + b L^2 for the layers, c R for the head."""

    per_token: float
    """a."""
    per_token_squared: float
    """b."""
    per_response_token: float
    """c."""

    def layers(self, tokens: int) -> float:
        """Operations of one sequence of that many tokens, without the head."""
        return self.per_token * tokens + self.per_token_squared * tokens**2

    def training(self, lengths: tuple[int, ...], response_tokens: int) -> float:
        """Operations of forward and backward over sequences of these lengths, with `response_tokens` in all."""
        forward = sum(map(self.layers, lengths)) + self.per_response_token * response_tokens
        return (1 + BACKWARD) * forward


def cost_of(module: PreTrainedModel) -> Cost:
    """The cost of the model; it must not be sharded yet."""
    config = module.config.get_text_config()
    head: Any = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    products = sum(
        weight.numel() * _used_share(path, weight, config)
        for path, layer in module.named_modules()
        if layer is not head and not isinstance(layer, torch.nn.Embedding)  # embeddings look up, they do not multiply
        for weight in layer.parameters(recurse=False)
        if weight.ndim >= 2
    )
    return Cost(
        per_token=2.0 * products,
        per_token_squared=1.0 * attention_layers(config) * attention_width(config),
        per_response_token=2.0 * head.weight.numel(),
    )


def _used_share(path: str, weight: torch.Tensor, config: Any) -> float:
    """Share of the weight that a token is multiplied by: of experts, those that it is sent to."""
    if "experts" not in path.split("."):
        return 1.0
    experts = weight.shape[0] if weight.ndim == 3 else expert_count(config)
    return min(1.0, experts_of_a_token(config) / experts)
