"""The formula against torch's own count of what a forward pass does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, Qwen3MoeConfig

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model import packing
from learner.model.flops import Cost
from tests.support import tiny_models


def of_product(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Of oneDNN's operator, which torch does not count: a multiplication and an addition per output and input."""
    return 2 * math.prod(x) * weight[0]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_forward_pass_takes_what_the_formula_says(tmp_path: Path, family: tiny_models.Family) -> None:
    model = tiny_models.load(tmp_path, tiny_models.config(family))
    batch = packing.pack_sequences(
        [packing.Sequence(r.prompt_tokens, r.response_tokens) for r in tiny_models.rollouts(5)]
    )
    # plain matrix products for attention: torch does not count the fused kernel of the CPU
    products = {torch.ops.mkldnn._linear_pointwise: of_product}
    with (
        FlopCounterMode(display=False, custom_mapping=products) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0)
    cost = model.cost
    responses = cost.per_response_token * sum(batch.response_lengths)
    causal = sum(map(cost.layers, batch.lengths)) + responses
    squared = cost.per_token_squared * sum(length**2 for length in batch.lengths)
    assert counter.get_total_flops() == causal + squared, "torch counts all pairs, the formula those that are looked at"
    assert cost.training(batch.lengths, sum(batch.response_lengths)) == 3 * causal


def test_layers_of_other_classes_count_too(tmp_path: Path) -> None:
    """GPT-2 has a class of its own for its matrix products."""
    hidden, inner, layers = 32, 48, 2
    shape: dict[str, Any] = {
        "vocab_size": 67,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": 4,
        "n_inner": inner,
        "n_positions": 64,
    }
    cost = tiny_models.load(tmp_path, GPT2Config(**shape, initializer_range=0.3)).cost
    assert cost.per_token == 2 * layers * (4 * hidden**2 + 2 * hidden * inner)
    assert cost.per_response_token == 2 * hidden * 67


def test_of_experts_those_count_that_a_token_is_sent_to(tmp_path: Path) -> None:
    experts, used, width = 6, 2, 16
    mixture = Qwen3MoeConfig(
        **tiny_models.SHAPE | {"head_dim": 8},
        num_experts=experts,
        num_experts_per_tok=used,
        moe_intermediate_size=width,
    )
    cost = tiny_models.load(tmp_path, mixture).cost
    hidden = mixture.hidden_size
    attention = 2 * hidden * hidden + 2 * hidden * hidden // 2
    assert cost.per_token == 2 * mixture.num_hidden_layers * (attention + hidden * experts + used * 3 * hidden * width)


def test_long_sequences_cost_more_than_their_tokens() -> None:
    cost = Cost(per_token=10, per_token_squared=1, per_response_token=0)
    assert cost.layers(20) == 600
    assert 2 * cost.layers(10) == 400
