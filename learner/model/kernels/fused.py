"""Norms and gated activations in one pass over memory on a GPU, where transformers takes six and five.

    RMSNorm   y = w x / sqrt(mean(x^2) + eps)     torch's own kernel
    SwiGLU    h = silu(g) u                       compiled by torch's inductor from the formula below

Elementwise operators move bytes and compute next to nothing, so each pass that is saved is time saved. A layer is
changed only if its class computes exactly that formula, which is tried with random numbers: Gemma's norm, for one, has
1 + w in the place of w and stays as it is.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils._triton import has_triton

EPS_NAMES = ("variance_epsilon", "eps")
"""Attributes in which transformers' norms keep their epsilon."""
GATED = ("gate_proj", "up_proj", "down_proj")
"""The linear layers of a gated block."""
PROBE_SIZE = 8


def use_fused(module: torch.nn.Module) -> None:
    """Make every plain RMSNorm and SwiGLU block of a module on a GPU compute in one pass; weights and names stay."""
    for layer in module.modules():
        if _is_rms_norm(type(layer), layer):
            layer.__class__ = type(type(layer).__name__, (_RMSNorm, type(layer)), {})
        elif _is_swiglu(type(layer), layer):
            layer.__class__ = type(type(layer).__name__, (_SwiGLU, type(layer)), {})


class _RMSNorm(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        return functional.rms_norm(x, (x.shape[-1],), weight, _epsilon(self))


class _SwiGLU(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (getattr(self, name) for name in GATED)
        out: torch.Tensor = down(swiglu(gate(x), up(x)))
        return out


@torch.library.custom_op("sept::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(g) u, of one shape and type."""
    out: torch.Tensor = _on(gate, _swiglu)(gate, up)
    return out


@torch.library.custom_op("sept::swiglu_backward", mutates_args=())
def swiglu_backward(slope: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of g and u from that of silu(g) u."""
    gradients: tuple[torch.Tensor, torch.Tensor] = _on(gate, _swiglu_backward)(slope, gate, up)
    return gradients


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def _swiglu_backward(slope: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """silu'(g) = s + g s (1 - s), s = sigmoid(g)."""
    dtype = gate.dtype
    slope, gate, up = slope.float(), gate.float(), up.float()
    s = torch.sigmoid(gate)
    return (slope * up * (s + gate * s * (1.0 - s))).to(dtype), (slope * gate * s).to(dtype)


@swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate)


@swiglu_backward.register_fake
def _(slope: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradients: tuple[torch.Tensor, torch.Tensor] = swiglu_backward(slope, *ctx.saved_tensors)
    return gradients


swiglu.register_autograd(_differentiate, setup_context=_keep)


def _on(tensor: torch.Tensor, formula: Callable[..., Any]) -> Callable[..., Any]:
    """The formula, as one kernel on a GPU that can compile one."""
    return _compiled(formula) if tensor.is_cuda and has_triton() else formula


@functools.cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(formula, dynamic=True)  # one kernel for any number of tokens
    return compiled


def _epsilon(norm: torch.nn.Module) -> float:
    return float(next(getattr(norm, name) for name in EPS_NAMES if hasattr(norm, name)))


def _is_rms_norm(kind: type[torch.nn.Module], norm: torch.nn.Module) -> bool:
    own = dict(norm.named_parameters(recurse=False))
    if own.keys() != {"weight"} or list(norm.children()) or not any(hasattr(norm, name) for name in EPS_NAMES):
        return False
    return _computes(kind, norm, lambda x, w: functional.rms_norm(x, (PROBE_SIZE,), w, _epsilon(norm)))


def _is_swiglu(kind: type[torch.nn.Module], block: torch.nn.Module) -> bool:
    children = dict(block.named_children())
    linear = all(isinstance(children.get(name), torch.nn.Linear) for name in GATED)
    if not linear or list(block.parameters(recurse=False)):
        return False
    return _computes(kind, block, lambda x, w: functional.silu(x @ w.T) * (x @ w.T) @ w.T)


def _computes(
    kind: type[torch.nn.Module],
    layer: torch.nn.Module,
    formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> bool:
    """Whether the class computes formula(x, w) when all its weights are w [or row 0 of it for a vector]."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator) for _ in range(2))
    probe = copy.copy(layer)
    if layer._parameters:
        w = w[0]
        probe._parameters = {"weight": torch.nn.Parameter(w)}
    else:
        linear = torch.nn.Linear(PROBE_SIZE, PROBE_SIZE, bias=False)
        linear.weight.data = w
        probe._modules = layer._modules | dict.fromkeys(GATED, linear)
    try:
        with torch.no_grad():
            return torch.allclose(kind.forward(probe, x), formula(x, w), rtol=1e-4, atol=1e-5)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False  # it takes other arguments, so it is something else
