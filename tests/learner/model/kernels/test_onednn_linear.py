"""Products of matrices are torch's to rounding, forward and backward, and oneDNN's on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from learner.model.kernels.onednn_linear import CACHES, HAS_ONEDNN, Linear, add_product, product, use_onednn
from tests.support import tiny_models

sizes = st.integers(1, 40)
"""Rows, inputs and outputs; 1 and odd numbers reach the tails of the kernels."""

on_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="torch was built without oneDNN")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@settings(max_examples=60, deadline=None)
@given(rows=sizes, inputs=sizes, outputs=sizes, bias=st.booleans(), seed=st.integers(0, 9))
def test_forward_and_gradients_are_those_of_exact_arithmetic(
    rows: int, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    exact = torch.nn.Linear(inputs, outputs, bias=bias).double()
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())
    use_onednn(layer)
    x, slope = random(1, rows, inputs, seed=seed), random(1, rows, outputs, seed=seed + 1)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = layer(ours), exact(theirs)
    out.backward(slope)
    expected.backward(slope.double())
    pairs = [(out, expected), (ours.grad, theirs.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(layer.parameters(), exact.parameters(), strict=True)]
    for got, wanted in pairs:
        assert got is not None and wanted is not None
        assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-5)


@on_onednn
def test_the_same_product_has_the_same_bits() -> None:
    x, weight = random(37, 96), random(200, 96)
    first = product(x, weight)
    assert all(torch.equal(first, product(x.clone(), weight.clone())) for _ in range(5))


def test_a_sum_of_products_grows_in_place_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.model.kernels.onednn_linear.BLOCK_ELEMENTS", 4 * 11)
    total, x, weight = random(10, 11), random(10, 7), random(11, 7)
    expected, place = total + x @ weight.T, total.data_ptr()
    add_product(total, x, weight)
    assert torch.allclose(total, expected, atol=1e-5) and total.data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_computed_by_torch(dtype: torch.dtype) -> None:
    x, weight = random(5, 8).to(dtype), random(3, 8).to(dtype)
    assert torch.equal(product(x, weight), functional.linear(x, weight))
    total = torch.ones(5, 3, dtype=dtype)
    add_product(total, x, weight)
    assert torch.equal(total, torch.ones(5, 3, dtype=dtype).addmm_(x, weight.T))


def test_a_frozen_weight_gets_no_gradient() -> None:
    layer = torch.nn.Linear(6, 4)
    use_onednn(layer)
    layer.weight.requires_grad_(False)
    layer(random(3, 6)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


def test_a_loaded_model_uses_onednn_and_keeps_its_names(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path)
    layers = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Linear)]
    assert layers and all(isinstance(layer, Linear) for layer in layers)
    assert not [name for name in model.module.state_dict() if not name.startswith(("model.", "lm_head."))]


GROWTH = """
import ctypes
import sys
from pathlib import Path

import torch

from learner.model.model_loading import load_model

class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena ordblks smblks hblks hblkhd usmblks fsmblks used".split())]
    _fields_ += [("rest", ctypes.c_size_t * 2)]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Usage
layer = load_model(sys.argv[1], device="cpu").module.model.layers[0].mlp.up_proj

def use(lengths):
    for length in lengths:
        layer(torch.ones(length, layer.in_features, requires_grad=True)).sum().backward()
    return library.mallinfo2().used

before = use(range(100, 200))
print(use(range(200, 400)) - before)
"""


@on_onednn
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc what is in use")
def test_memory_does_not_grow_with_every_new_number_of_tokens(tmp_path: Path) -> None:
    """Each of the 200 lengths has three products of its own, at 0.6 MB."""
    command = [sys.executable, "-c", GROWTH, str(tiny_models.save(tmp_path))]
    environ = {name: value for name, value in os.environ.items() if name not in CACHES}
    grown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 8_000_000


def test_few_compiled_kernels_are_kept_unless_the_user_sets_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHES[0], "7")
    monkeypatch.delenv(CACHES[1], raising=False)
    use_onednn(torch.nn.Identity())
    assert [os.environ[name] for name in CACHES] == ["7", "64"]
