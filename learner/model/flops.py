"""Counts the floating-point operations of a sequence, from the model's shape.

A forward pass over a sequence of L tokens of which R predict a response token takes

    2 P L  +  4 n d (L^2 / 2)  +  2 H V R

operations. P: weights of the layers' matrix products, without embedding and norms. n: layers with attention of width
d = heads x head size; its scores and its weighted values take 2 d per pair of tokens each, and causal attention needs
half of the pairs. The head has H x V weights. The backward pass takes twice as many operations. What gradient
checkpointing computes again is not counted, as MFU is about the model (Chowdhery et al., arXiv 2204.02311, appendix B,
there without the halving).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from learner.model.hf_checkpoint import head_size

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
    head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    products = sum(
        layer.weight.numel()
        for layer in module.modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head  # embeddings look up, they do not multiply
    )
    width = config.num_attention_heads * head_size(config)
    return Cost(
        per_token=2.0 * products,
        per_token_squared=2.0 * config.num_hidden_layers * width,
        per_response_token=2.0 * head.weight.numel(),
    )
