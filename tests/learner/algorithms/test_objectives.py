"""Every objective against its formula, sliced logits against whole ones, and Theorem 1 of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.algorithms.objectives import (
    Head,
    Objective,
    Targets,
    entropy,
    group_advantages,
    grpo,
    nll,
    objective_named,
    summed_loss,
)

N, V, H = 37, 11, 6
OBJECTIVES = {"nll": nll, "entropy": entropy, "grpo": grpo}


def problem(seed: int = 0) -> tuple[torch.Tensor, Head, Targets]:
    """Random hidden states, head and targets with old log-probs near the current ones."""
    torch.manual_seed(seed)
    hidden = torch.randn(N, H, requires_grad=True)
    head = Head(torch.randn(V, H, requires_grad=True), torch.randn(V, requires_grad=True), softcap=5.0)
    tokens = torch.randint(V, (N,))
    old = logits(hidden, head).log_softmax(-1)[torch.arange(N), tokens].detach() + 0.3 * torch.randn(N)
    return hidden, head, Targets(tokens, old, torch.randn(N))


def logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    z = hidden @ head.weight.T
    z = z if head.bias is None else z + head.bias
    return z if head.softcap is None else head.softcap * (z / head.softcap).tanh()


def reference(name: str, hidden: torch.Tensor, head: Head, targets: Targets, tau: float) -> torch.Tensor:
    """The formulas, with whole logits."""
    p = (logits(hidden, head) / tau).softmax(-1)
    log_pi = p[torch.arange(len(p)), targets.tokens].log()
    if name == "nll":
        return -log_pi.sum()
    if name == "entropy":
        return -(p * p.log()).sum()
    assert targets.old_log_probs is not None and targets.advantages is not None
    ratio, advantage = (log_pi - targets.old_log_probs).exp(), targets.advantages
    return -torch.min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).sum()


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    assert head.bias is not None
    return torch.autograd.grad(loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tau", [1.0, 0.6])
@pytest.mark.parametrize("slice_logits", [None, 1, 5 * V])
def test_objective_and_gradient_equal_the_formula(name: Any, tau: float, slice_logits: int | None) -> None:
    hidden, head, targets = problem()
    losses = summed_loss(objective_named(name), hidden, head, targets, tau, slice_logits=slice_logits)
    expected = reference(name, hidden, head, targets, tau)
    torch.testing.assert_close(losses.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(losses.loss, hidden, head), gradients(expected, hidden, head), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_log_probs_are_those_of_the_sampled_tokens_at_the_training_temperature(objective: Objective) -> None:
    hidden, head, targets = problem()
    log_probs = summed_loss(objective, hidden, head, targets, 0.6, slice_logits=4 * V).log_probs
    expected = (logits(hidden, head) / 0.6).log_softmax(-1)[torch.arange(N), targets.tokens]
    torch.testing.assert_close(log_probs, expected.detach(), rtol=1e-5, atol=1e-5)
    assert not log_probs.requires_grad


def test_gradient_follows_the_factor_outside() -> None:
    hidden, head, targets = problem()
    once = gradients(summed_loss(nll, hidden, head, targets, 1.0).loss, hidden, head)
    thrice = gradients(summed_loss(nll, hidden, head, targets, 1.0).loss * 3, hidden, head)
    torch.testing.assert_close(thrice, tuple(3 * g for g in once))


def test_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets = problem()
    frozen = Head(head.weight.detach())
    loss = summed_loss(nll, hidden, frozen, targets, 1.0).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert frozen.weight.grad is None


def test_second_backward_is_refused() -> None:
    hidden, head, targets = problem()
    loss = summed_loss(nll, hidden, head, targets, 1.0).loss
    gradients(loss * 1, hidden, head)
    with pytest.raises(RuntimeError):
        gradients(loss * 1, hidden, head)


def test_without_gradients_nothing_is_differentiable() -> None:
    hidden, head, targets = problem()
    with torch.no_grad():
        losses = summed_loss(nll, hidden, head, targets, 1.0)
    assert not losses.loss.requires_grad


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements that any operator returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_logits_of_the_batch_never_exist(objective: Objective) -> None:
    hidden, head, targets = problem()
    with LargestTensor() as largest:
        summed_loss(objective, hidden, head, targets, 0.6, slice_logits=3 * V).loss.backward()  # type: ignore[no-untyped-call]
    assert largest.elements == max(N * H, V * H) < N * V


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_under_autocast_products_are_bf16_and_sums_and_gradients_float32(objective: Objective) -> None:
    hidden, head, targets = problem()
    exact = summed_loss(objective, hidden, head, targets, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = summed_loss(objective, hidden, head, targets, 1.0, slice_logits=4 * V)
    assert rough.loss.dtype is torch.float32
    torch.testing.assert_close(rough.log_probs, exact.log_probs, rtol=0.02, atol=0.1)
    for near, true in zip(gradients(rough.loss, hidden, head), gradients(exact.loss, hidden, head), strict=True):
        assert near.dtype is torch.float32
        assert torch.nn.functional.cosine_similarity(near.flatten(), true.flatten(), dim=0) > 0.99


def test_grpo_gradient_is_zero_where_the_clip_is_active() -> None:
    """Beyond the clip on the side the advantage pushes to: no gradient. On the other side: full gradient."""
    logits_NV = torch.zeros(4, 2, requires_grad=True)
    now = torch.tensor(0.5).log()
    old = now - torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    targets = Targets(torch.zeros(4, dtype=torch.int64), old, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    grpo(logits_NV, targets).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits_NV.grad is not None
    assert logits_NV.grad.any(dim=1).tolist() == [False, True, True, False]


def test_grpo_without_old_log_probs_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="old log-probabilities"):
        grpo(torch.zeros(1, 2), Targets(torch.zeros(1, dtype=torch.int64)))


def test_advantages_are_normalised_within_each_group() -> None:
    advantages = group_advantages([1.0, 0.0, 5.0, 5.0, 0.0, 3.0], [7, 7, 8, 8, 7, 9])
    third = 3**0.5 / 3
    assert advantages == pytest.approx([2 * third, -third, 0.0, 0.0, -third, 0.0], abs=1e-5)


# Theorem 1 and the score-function identity, on a one-layer model: a table of logits, one column per prefix.


def table(seed: int = 0) -> torch.Tensor:
    """[V, contexts] logits of the sampling model."""
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def sampled(z_old: torch.Tensor, tau_s: float, count: int) -> tuple[torch.Tensor, Targets]:
    """One-hot prefixes [N, contexts] and `count` tokens per prefix drawn at tau_s."""
    p = (z_old.T / tau_s).softmax(-1)
    tokens = torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(1))
    return torch.eye(3).repeat_interleave(count, 0), Targets(tokens.flatten())


def expected(z_old: torch.Tensor, tau_s: float, count: int) -> tuple[torch.Tensor, Targets]:
    """The same without the noise: every token as often as its probability says, to rounding."""
    often = ((z_old.T / tau_s).softmax(-1).double() * count).round().long()
    tokens = [torch.arange(5).repeat_interleave(row) for row in often]
    return torch.eye(3).repeat_interleave(often.sum(1), 0), Targets(torch.cat(tokens))


def fit(hidden: torch.Tensor, targets: Targets, start: torch.Tensor, tau_t: float) -> torch.Tensor:
    """The table that minimises the NLL at tau_t, from `start`."""
    z = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure() -> float:
        optimizer.zero_grad()
        loss = summed_loss(nll, hidden, Head(z), targets, tau_t).loss / targets.tokens.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return z.detach()


def margins(z: torch.Tensor) -> torch.Tensor:
    """[V, V, contexts] pairwise logit differences."""
    return z[:, None] - z[None]


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.6, 1.0), (0.9, 1.0), (0.6, 0.6), (1.0, 0.5)])
def test_theorem_1_margins_grow_by_tau_t_over_tau_s(tau_s: float, tau_t: float) -> None:
    z_old = table()
    z_new = fit(*expected(z_old, tau_s, 20_000), z_old, tau_t)
    torch.testing.assert_close(margins(z_new), margins(z_old) * tau_t / tau_s, rtol=5e-3, atol=5e-3)


def test_theorem_1_holds_on_samples_within_sampling_error() -> None:
    z_old, count = table(), 40_000
    z_new = fit(*sampled(z_old, 0.6, count), z_old, 1.0)
    p = (z_old / 0.6).softmax(0)
    deviation = (1 / (count * p[:, None]) + 1 / (count * p[None])).sqrt()
    assert ((margins(z_new) - margins(z_old) / 0.6).abs() <= 5 * deviation).all()


@pytest.mark.parametrize(("tau_t", "vanishes"), [(0.6, True), (1.0, False)])
def test_expected_gradient_is_zero_exactly_when_temperatures_agree(tau_t: float, vanishes: bool) -> None:
    """E[d/dz -log pi(o; tau)] = 0 for o ~ pi(tau); a sample's gradient has variance p (1 - p) / tau^2 per logit."""
    z_old, tau_s, count = table(), 0.6, 40_000
    hidden, targets = sampled(z_old, tau_s, count)
    z = z_old.clone().requires_grad_()
    (summed_loss(nll, hidden, Head(z), targets, tau_t).loss / count).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    p = (z_old / tau_s).softmax(0)
    deviations = z.grad.abs() / (p * (1 - p) / tau_t**2 / count).sqrt()
    assert bool((deviations < 4).all()) is vanishes
