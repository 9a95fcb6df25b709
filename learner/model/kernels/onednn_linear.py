"""Matrix products in float32 on CPU by oneDNN instead of the BLAS that torch calls.

oneDNN compiles kernels for the features of the processor. MKL, the BLAS of torch's builds for x86, chooses by vendor
and uses half the vector width on AMD: measured on a Zen 5 core, 100 GFLOP/s against oneDNN's 200 to 235. Both multiply
in float32 and differ in the order of their sums. On other devices and in other types torch's own products are used.

Legend of shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.nn import functional

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
"""Whether torch was built with it; its builds for x86 and Linux on ARM are."""

KERNELS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    *([torch.ops.mkldnn._linear_pointwise.default] if HAS_ONEDNN else []),
)
"""The operators behind a matrix product, by device and type."""

BLOCK_ELEMENTS = 1 << 20
"""Elements of a product that `add_product` computes before it adds them: 4 MiB, which fit the caches."""

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables that oneDNN and torch's layer above it read once."""

CACHED_PRODUCTS = 64
"""Compiled kernels that are kept (the default is 1,024). Each takes 0.6 MB, and every number of tokens has its own. The
layers of a model share about ten, which are compiled again in 15 ms."""


def product(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b, [..., O], for any strides. Not differentiable: use `Linear` for that."""
    if not _uses_onednn(x_NI):
        return functional.linear(x_NI, weight_OI, bias_O)
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return out


def add_product(total_NO: torch.Tensor, x_NI: torch.Tensor, weight_OI: torch.Tensor) -> None:
    """total += x W^T, in place and without a second tensor of that size.

    A float32 total of factors in 16 bits is summed in float32, also over several calls.
    """
    if total_NO.dtype != x_NI.dtype and x_NI.is_cuda:
        torch.addmm(total_NO, x_NI, weight_OI.T, out_dtype=total_NO.dtype, out=total_NO)
        return
    if total_NO.dtype != x_NI.dtype:
        x_NI, weight_OI = x_NI.to(total_NO.dtype), weight_OI.to(total_NO.dtype)
    if not _uses_onednn(x_NI):
        total_NO.addmm_(x_NI, weight_OI.T)
        return
    rows = max(1, BLOCK_ELEMENTS // weight_OI.shape[0])
    for total, x in zip(torch.split(total_NO, rows), torch.split(x_NI, rows), strict=True):
        total += product(x, weight_OI)


def _uses_onednn(x: torch.Tensor) -> bool:
    return HAS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


class Linear(torch.nn.Linear):
    """torch's layer, computed by `product`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _uses_onednn(x):
            return super().forward(x)
        out: torch.Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope = outer[0]
        slope_NO, x_NI = slope.reshape(-1, slope.shape[-1]), x.reshape(-1, x.shape[-1])
        x_needed, weight_needed, bias_needed = ctx.needs_input_grad
        return (
            product(slope, weight.t()) if x_needed else None,
            product(slope_NO.t(), x_NI.t()) if weight_needed else None,
            slope_NO.sum(dim=0) if bias_needed else None,
        )


def use_onednn(module: torch.nn.Module) -> None:
    """Make every ordinary linear layer of a module on CPU compute by oneDNN; weights and names stay.

    Call it before the process computes anything: the first operator of any kind creates oneDNN's caches.
    """
    for cache in CACHES:
        os.environ.setdefault(cache, str(CACHED_PRODUCTS))
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = Linear
