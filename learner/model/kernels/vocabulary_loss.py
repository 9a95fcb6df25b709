"""The last layer and the loss over the vocabulary, with its gradient, without the logits of a whole batch in memory.

Legend of shapes: N response tokens, V vocabulary, H hidden size, C tokens of a slice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._triton import has_triton

from learner.algorithms.base import Targets, TokenLoss, TokenLosses
from learner.model.kernels.onednn_linear import add_product, product

SLICE_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits that exist at once: 64 MiB in float32 on a CPU; 512 MiB on a GPU, which needs larger products to be busy."""


class Head(NamedTuple):
    """The last layer: logits = cap(hidden @ weight^T + bias)."""

    weight: torch.Tensor
    """[V, H]."""
    bias: torch.Tensor | None = None
    """[V]."""
    softcap: float | None = None
    """cap(z) = softcap * tanh(z / softcap); None: cap(z) = z."""


def summed_loss(
    token_loss: TokenLoss,
    hidden_NH: torch.Tensor,
    head: Head,
    targets: Targets,
    tau: float,
    *,
    slice_logits: int | None = None,
) -> TokenLosses:
    """Sum of the loss over N tokens (a scalar, differentiable) and their log-probabilities [N] (constants).

    The logits exist for one slice of tokens at a time, about `slice_logits` (default: SLICE_LOGITS) of them. Where
    gradients are on, a slice's gradient is taken as soon as its loss is known, so no slice is kept and nothing is
    computed twice: three matrix products, as in ordinary backpropagation. (Measured on one CPU core, 1,024 tokens,
    V = 49,152, H = 576: as fast as whole logits, half the time of torch's `linear_cross_entropy`, two thirds of
    recomputation by checkpointing.) The products are in the type of hidden states and weight, the loss, the sums over
    slices and the gradient of the weight in float32.
    """
    weight, bias, softcap = head

    def score(logits_CV: torch.Tensor, rows: slice) -> TokenLosses:
        if _compiles_on(logits_CV):
            temperature = torch.full((), tau, device=logits_CV.device)  # as a number it would be compiled in
            return _compiled()(token_loss, logits_CV, targets[rows], softcap, temperature)
        return score_slice(token_loss, logits_CV, targets[rows], softcap, None if tau == 1.0 else tau)

    limit = slice_logits or SLICE_LOGITS[hidden_NH.device.type]
    loss, log_probs = _SlicedSum.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight, bias, score, max(1, limit // weight.shape[0]), torch.is_grad_enabled()
    )
    return TokenLosses(loss, log_probs)


def score_slice(
    token_loss: TokenLoss,
    logits_CV: torch.Tensor,
    targets: Targets,
    softcap: float | None,
    tau: float | torch.Tensor | None,
) -> TokenLosses:
    """The losses of a slice from what the head's product gives, in whatever type that is; `tau` None: 1.

    Operator by operator a logit is moved 36 bytes to and fro, there and back. Compiled it is 8: read twice and once,
    written once, in bf16.
    """
    logits_CV = logits_CV.float()
    capped = logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)
    return token_loss(capped if tau is None else capped / tau, targets)


def _compiles_on(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and has_triton()


@functools.cache
def _compiled() -> Callable[..., TokenLosses]:
    compiled: Callable[..., TokenLosses] = torch.compile(score_slice, dynamic=True)  # for slices of any length
    return compiled


class _SlicedSum(torch.autograd.Function):
    """Sum over slices of tokens; gradients are computed on the way forward and only scaled on the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        score: Callable[[torch.Tensor, slice], TokenLosses],
        tokens: int,
        differentiate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (hidden_NH, weight_VH, bias_V)
        needed = [differentiate and i is not None and n for i, n in zip(inputs, ctx.needs_input_grad, strict=False)]
        grads = [
            torch.zeros_like(i, dtype=i.dtype if i is hidden_NH else torch.float32) if n and i is not None else None
            for i, n in zip(inputs, needed, strict=True)
        ]
        total = torch.zeros((), device=hidden_NH.device)
        log_probs = []
        for start in range(0, hidden_NH.shape[0], tokens):
            rows = slice(start, start + tokens)
            hidden_CH = hidden_NH[rows]
            logits_CV = product(hidden_CH, weight_VH, bias_V)
            logits_CV = (logits_CV if _compiles_on(logits_CV) else logits_CV.float()).requires_grad_(any(needed))
            with torch.set_grad_enabled(any(needed)):
                losses = score(logits_CV, rows)
                loss = losses.loss.sum()
            if any(needed):
                (slope_CV,) = torch.autograd.grad(loss, logits_CV)
                _add_gradients(grads, rows, slope_CV.to(hidden_CH.dtype), hidden_CH, weight_VH)
            total += loss.detach()
            log_probs.append(losses.log_probs.detach())
        ctx.grads = grads
        out = torch.cat(log_probs)
        ctx.mark_non_differentiable(out)
        return total, out

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, and let go of: the head's gradient is the largest tensor of the step. So backward runs once.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("summed_loss can be differentiated once only")
        return *(None if grad is None else grad.mul_(outer[0]) for grad in grads), None, None, None


def _add_gradients(
    grads: list[torch.Tensor | None],
    rows: slice,
    slope_CV: torch.Tensor,
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
) -> None:
    """Chain rule through logits = hidden @ weight^T + bias, for one slice, into the whole gradients in place."""
    hidden_grad, weight_grad, bias_grad = grads
    if hidden_grad is not None:
        hidden_grad[rows] = product(slope_CV, weight_VH.T)
    if weight_grad is not None:
        add_product(weight_grad, slope_CV.T, hidden_CH.T)
    if bias_grad is not None:
        bias_grad += slope_CV.sum(dim=0, dtype=bias_grad.dtype)
