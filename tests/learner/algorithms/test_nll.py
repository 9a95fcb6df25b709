"""NLL: Theorem 1 of the paper and the score-function identity."""

from __future__ import annotations

import pytest
import torch

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.kernels.vocabulary_loss import Head, summed_loss

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
