"""Each kernel that runs on a GPU only, against its plain twin in float32."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from learner.algorithm_list import ALGORITHMS
from learner.algorithms.base import Targets
from learner.model import attention
from learner.model.attention import packed_attention
from learner.model.kernels.fused import swiglu
from learner.model.kernels.onednn_linear import add_product
from learner.model.kernels.vocabulary_loss import Head, summed_loss

pytestmark = pytest.mark.gpu

BF16 = 2**-8
"""Relative distance between neighbouring bf16 numbers."""
LENGTHS = (1, 70, 513, 129)
Tensors = tuple[torch.Tensor, ...]


def near(ours: torch.Tensor, exact: torch.Tensor, roundings: float) -> None:
    """The root mean square error is that of so many roundings of numbers of this size."""
    error = float((ours.float() - exact.float()).square().mean().sqrt())
    size = float(exact.float().square().mean().sqrt())
    assert error <= roundings * BF16 * size, (error, size)


def with_gradients(function: Callable[..., torch.Tensor], inputs: Tensors, slope: torch.Tensor) -> Tensors:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))


@pytest.mark.parametrize("window", [None, 1, 64, 512])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("head_size", [64, 128])
def test_the_varlen_kernel_attends_as_float32_does(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    heads: int,
    key_heads: int,
    head_size: int,
) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, count, total, head_size) for count in (heads, key_heads, key_heads)]
    inputs = tuple(torch.randn(shape, device=gpu).bfloat16() for shape in shapes)
    ends = torch.tensor([0, *LENGTHS], device=gpu).cumsum(0).int()

    def attend(*states: torch.Tensor) -> torch.Tensor:
        return packed_attention(
            SimpleNamespace(),  # type: ignore[arg-type]
            states[0],
            states[1],
            states[2],
            None,
            sliding_window=window,
            cu_seq_lens_q=ends,
            max_length_q=max(LENGTHS),
            sequence_lengths=LENGTHS,
        )[0]

    called: list[int] = []
    kernel = attention._varlen

    def counted(*args: Any) -> Any:
        called.append(1)
        return kernel(*args)

    monkeypatch.setattr(attention, "_varlen", counted)
    slope = torch.randn(1, total, heads, head_size, device=gpu).bfloat16()
    ours = with_gradients(attend, inputs, slope)
    assert called, "the kernel was chosen"
    exact = with_gradients(attend, tuple(tensor.float() for tensor in inputs), slope)
    for own, true in zip(ours, exact, strict=True):
        near(own, true, 2)


def test_the_fused_norm_is_the_formula(gpu: torch.device) -> None:
    torch.manual_seed(0)
    x, w, slope = (torch.randn(shape, device=gpu).bfloat16() for shape in ((777, 3584), (3584,), (777, 3584)))
    ours = with_gradients(lambda x, w: functional.rms_norm(x, (3584,), w, 1e-6), (x, w), slope)

    def formula(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    for own, true in zip(ours, with_gradients(formula, (x.double(), w.double()), slope), strict=True):
        near(own, true, 1)


@pytest.mark.parametrize("tokens", [1, 1365, 4096])
def test_the_compiled_swiglu_is_the_formula_for_any_number_of_tokens(gpu: torch.device, tokens: int) -> None:
    torch.manual_seed(0)
    gate, up, slope = (torch.randn(1, tokens, 4864, device=gpu).bfloat16() for _ in range(3))
    ours = with_gradients(swiglu, (gate, up), slope)
    exact = with_gradients(lambda g, u: functional.silu(g) * u, (gate.double(), up.double()), slope)
    for own, true in zip(ours, exact, strict=True):
        near(own, true, 1)


def test_products_of_bf16_are_added_in_float32(gpu: torch.device) -> None:
    """Each of 512 terms is 1: a bf16 sum would stop at 256."""
    total = torch.zeros(8, 8, device=gpu)
    ones = torch.ones(8, 16, device=gpu).bfloat16()
    for _ in range(512):
        add_product(total, ones, ones)
    assert torch.equal(total, torch.full_like(total, 512 * 16))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loss_over_the_vocabulary_in_slices_is_that_of_float64(gpu: torch.device, name: str) -> None:
    torch.manual_seed(0)
    tokens, vocabulary, width = 700, 50_000, 128
    hidden = torch.randn(tokens, width, device=gpu).bfloat16()
    weight = (torch.randn(vocabulary, width, device=gpu) / width**0.5).bfloat16()
    chosen = torch.randint(vocabulary, (tokens,), device=gpu)
    old = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, chosen[:, None])[:, 0].float()
    targets = Targets(chosen, old, torch.randn(tokens, device=gpu))

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        weight.grad_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return summed_loss(
            ALGORITHMS[name].losses, hidden, Head(weight), targets, 1.0, slice_logits=100 * vocabulary
        ).loss

    ours = with_gradients(loss, (hidden, weight), torch.ones((), device=gpu))
    exact = with_gradients(loss, (hidden.float(), weight.float()), torch.ones((), device=gpu))
    assert ours[2].dtype == torch.float32
    near(ours[0], exact[0], 1)
    for own, true in zip(ours[1:], exact[1:], strict=True):
        near(own, true, 8)


def test_copies_of_batches_do_not_make_the_host_wait(gpu: torch.device) -> None:
    from learner.model.packing import Sequence, pack_sequences

    def numbers(count: int) -> Any:
        import numpy as np

        return np.arange(count, dtype=np.int32)

    batch = pack_sequences([Sequence(numbers(1000), numbers(3000))])
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(moved.input_ids.cpu(), batch.input_ids)
