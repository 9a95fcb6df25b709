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


def test_long_sequences_cost_more_than_their_tokens() -> None:
    cost = Cost(per_token=10, per_token_squared=1, per_response_token=0)
    assert cost.layers(20) == 600
    assert 2 * cost.layers(10) == 400
