"""What a token costs under each objective, and its gradient without the logits of a batch. Knows no model and no run.

Every objective is a pure function from the logits of N positions to N losses; `summed_loss` feeds it slice by slice.

Legend of shapes: N response tokens, V vocabulary, H hidden size, C tokens of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional

from learner.model.onednn_linear import add_product, product

CLIP = 0.2
"""GRPO's ratio is clipped to 1 - CLIP ... 1 + CLIP (verl's default, used by the paper)."""

ADVANTAGE_EPSILON = 1e-6
"""Keeps the advantage finite where all rewards of a group agree."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is known about the tokens whose loss is asked."""

    tokens: torch.Tensor
    """[N] int64, the sampled tokens."""
    old_log_probs: torch.Tensor | None = None
    """[N] under the weights at the round's start; grpo only."""
    advantages: torch.Tensor | None = None
    """[N], each rollout's advantage at each of its tokens; grpo only."""

    def __getitem__(self, rows: slice) -> Targets:
        return Targets(
            self.tokens[rows],
            None if self.old_log_probs is None else self.old_log_probs[rows],
            None if self.advantages is None else self.advantages[rows],
        )


class TokenLosses(NamedTuple):
    """[N] each."""

    loss: torch.Tensor
    log_probs: torch.Tensor
    """log pi(o | prefix; tau_t) of the sampled tokens."""


Objective = Callable[[torch.Tensor, Targets], TokenLosses]
"""(logits / tau_t [N, V], targets) -> losses."""


def nll(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """SePT: -log softmax(z / tau_t)[o]  (arXiv 2510.18814, Algorithm 1)."""
    loss = functional.cross_entropy(logits_NV, targets.tokens, reduction="none")
    return TokenLosses(loss, -loss)


def entropy(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """EM-FT: H = -sum_v p_v log p_v, p = softmax(z / tau_t), at every sampled position (arXiv 2505.15134, "EM-FT").

    The sampled tokens only say where entropy is measured; the gradient does not flow through the sampling.
    """
    log_p_NV = functional.log_softmax(logits_NV, dim=-1)
    loss = -(log_p_NV.exp() * log_p_NV).sum(dim=-1)
    return TokenLosses(loss, log_p_NV.gather(-1, targets.tokens[:, None])[:, 0])


def grpo(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """GRPO without KL: -min(r A, clip(r, 1 - CLIP, 1 + CLIP) A), r = pi(o) / pi_old(o)  (arXiv 2402.03300, eq. 3).

    Summed over tokens and divided by the step's response tokens ("token-mean", as verl does), not per response first.
    """
    if targets.old_log_probs is None or targets.advantages is None:
        raise ValueError("grpo needs the old log-probabilities and the advantages")
    log_probs = -functional.cross_entropy(logits_NV, targets.tokens, reduction="none")
    ratio = (log_probs - targets.old_log_probs).exp()
    clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
    loss = -torch.minimum(ratio * targets.advantages, clipped * targets.advantages)
    return TokenLosses(loss, log_probs)


def objective_named(name: Literal["nll", "entropy", "grpo"]) -> Objective:
    """The objective of that name."""
    if name == "nll":
        return nll
    if name == "entropy":
        return entropy
    return grpo


def group_advantages(rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    """A_i = (r_i - mean) / (std + ADVANTAGE_EPSILON) over the rewards of i's group  (arXiv 2402.03300, section 4.1.2).

    `groups` names the prompt of each rollout. The deviation has the n - 1 denominator, as in verl. A group of one has
    nothing to be compared with: its advantage is 0.
    """
    members: dict[int, list[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        members.setdefault(group, []).append(reward)
    moments = {}
    for group, values in members.items():
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        moments[group] = (mean, variance**0.5 + ADVANTAGE_EPSILON)
    return [(reward - moments[g][0]) / moments[g][1] for reward, g in zip(rewards, groups, strict=True)]


def summed_loss(
    objective: Objective,
    hidden_NH: torch.Tensor,
    head: Head,
    targets: Targets,
    tau: float,
    *,
    slice_logits: int | None = None,
) -> TokenLosses:
    """Sum of the objective over N tokens (a scalar, differentiable) and their log-probabilities [N] (constants).

    The logits exist for one slice of tokens at a time, about `slice_logits` (default: SLICE_LOGITS) of them. Where
    gradients are on, a slice's gradient is taken as soon as its loss is known, so no slice is kept and nothing is
    computed twice: three matrix products, as in ordinary backpropagation. (Measured on one CPU core, 1,024 tokens,
    V = 49,152, H = 576: as fast as whole logits, half the time of torch's `linear_cross_entropy`, two thirds of
    recomputation by checkpointing.) Under autocast the products are in its type, the objective and the sums in float32.
    """
    weight, bias, softcap = head

    def score(logits_CV: torch.Tensor, rows: slice) -> TokenLosses:
        capped = logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)
        return objective(capped if tau == 1.0 else capped / tau, targets[rows])

    limit = slice_logits or SLICE_LOGITS[hidden_NH.device.type]
    loss, log_probs = _SlicedSum.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight, bias, score, max(1, limit // weight.shape[0]), torch.is_grad_enabled()
    )
    return TokenLosses(loss, log_probs)


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
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        inputs = (hidden_NH, weight_VH, bias_V)
        needed = [differentiate and i is not None and n for i, n in zip(inputs, ctx.needs_input_grad, strict=False)]
        grads = [torch.zeros_like(i) if n and i is not None else None for i, n in zip(inputs, needed, strict=True)]
        total = torch.zeros((), device=hidden_NH.device)
        log_probs = []
        with torch.autocast(device, enabled=False):
            weight, bias = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
            for start in range(0, hidden_NH.shape[0], tokens):
                rows = slice(start, start + tokens)
                hidden_CH = hidden_NH[rows].to(dtype)
                logits_CV = product(hidden_CH, weight, bias).float().requires_grad_(any(needed))
                with torch.set_grad_enabled(any(needed)):
                    losses = score(logits_CV, rows)
                    loss = losses.loss.sum()
                if any(needed):
                    (slope_CV,) = torch.autograd.grad(loss, logits_CV)
                    _add_gradients(grads, rows, slope_CV.to(dtype), hidden_CH, weight)
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
        if weight_grad.dtype == slope_CV.dtype:
            add_product(weight_grad, slope_CV.T, hidden_CH.T)
        else:
            weight_grad += slope_CV.T @ hidden_CH
    if bias_grad is not None:
        bias_grad += slope_CV.sum(dim=0)
