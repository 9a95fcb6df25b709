"""Fused norms and gated blocks compute what transformers' own classes compute, and replace nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from learner.model.kernels.fused import swiglu, use_fused

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def model_of(family: str, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE))  # type: ignore[no-untyped-call]
    return model.eval()


def fused_classes(model: torch.nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules() if type(m).__mro__[1].__module__.endswith("fused")}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_model_computes_the_same_with_fused_layers(family: str) -> None:
    model = model_of(family)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.arange(12)[None]
    own = model(tokens).logits
    use_fused(model)
    assert len(fused_classes(model)) == 2
    torch.testing.assert_close(model(tokens).logits, own, rtol=1e-4, atol=1e-4)


def test_layers_are_recognised_before_they_have_values() -> None:
    model = model_of("qwen2", "meta")
    use_fused(model)
    assert fused_classes(model) == {"Qwen2RMSNorm", "Qwen2MLP"}


@pytest.mark.parametrize("family", ["gemma2", "phi3", "starcoder2"])
def test_what_computes_another_formula_stays_as_it_is(family: str) -> None:
    """Gemma adds 1 to its norms' weights and has another activation, Phi 3 one matrix for gate and up."""
    model = model_of(family)
    use_fused(model)
    assert fused_classes(model) <= {"Phi3RMSNorm"}


def test_swiglu_and_its_gradient_are_the_formulas() -> None:
    gate, up = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(swiglu(gate, up), (functional.silu(gate) * up), rtol=1e-6, atol=1e-6)
    slope = torch.randn(5, 7, dtype=torch.float64)
    ours = torch.autograd.grad(swiglu(gate, up), (gate, up), slope)
    true = torch.autograd.grad(functional.silu(gate) * up, (gate, up), slope)
    for own, exact in zip(ours, true, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-5, atol=1e-6)


def test_in_16_bits_swiglu_rounds_once() -> None:
    gate, up = (torch.randn(64, 64).bfloat16() for _ in range(2))
    exact = functional.silu(gate.double()) * up.double()
    torch.testing.assert_close(swiglu(gate, up).double(), exact, rtol=2**-8, atol=1e-30)
