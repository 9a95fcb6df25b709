"""The loss of every algorithm against its formula, and sliced logits against whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from learner.algorithm_list import ALGORITHMS
from learner.algorithms.base import Targets, TokenLoss
from learner.algorithms.entropy import entropy
from learner.algorithms.grpo import grpo
from learner.algorithms.nll import nll
from learner.algorithms.vote_nll import weighted_nll
from learner.model.kernels.vocabulary_loss import Head, score_slice, summed_loss

N, V, H = 37, 11, 6
LOSSES = list(dict.fromkeys(algorithm.losses for algorithm in ALGORITHMS.values()))


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


def reference(token_loss: TokenLoss, hidden: torch.Tensor, head: Head, targets: Targets, tau: float) -> torch.Tensor:
    """The formulas, with whole logits."""
    p = (logits(hidden, head) / tau).softmax(-1)
    log_pi = p[torch.arange(len(p)), targets.tokens].log()
    if token_loss is nll:
        return -log_pi.sum()
    if token_loss is entropy:
        return -(p * p.log()).sum()
    assert targets.old_log_probs is not None and targets.signals is not None
    if token_loss is weighted_nll:
        return -(targets.signals * log_pi).sum()
    assert token_loss is grpo
    ratio, advantage = (log_pi - targets.old_log_probs).exp(), targets.signals
    return -torch.min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).sum()


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    assert head.bias is not None
    return torch.autograd.grad(loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("token_loss", LOSSES)
@pytest.mark.parametrize("tau", [1.0, 0.6])
@pytest.mark.parametrize("slice_logits", [None, 1, 5 * V])
def test_loss_and_gradient_equal_the_formula(token_loss: TokenLoss, tau: float, slice_logits: int | None) -> None:
    hidden, head, targets = problem()
    losses = summed_loss(token_loss, hidden, head, targets, tau, slice_logits=slice_logits)
    expected = reference(token_loss, hidden, head, targets, tau)
    torch.testing.assert_close(losses.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(losses.loss, hidden, head), gradients(expected, hidden, head), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("token_loss", LOSSES)
def test_log_probs_are_those_of_the_sampled_tokens_at_the_training_temperature(token_loss: TokenLoss) -> None:
    hidden, head, targets = problem()
    log_probs = summed_loss(token_loss, hidden, head, targets, 0.6, slice_logits=4 * V).log_probs
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


@pytest.mark.parametrize("token_loss", LOSSES)
def test_logits_of_the_batch_never_exist(token_loss: TokenLoss) -> None:
    hidden, head, targets = problem()
    with LargestTensor() as largest:
        summed_loss(token_loss, hidden, head, targets, 0.6, slice_logits=3 * V).loss.backward()  # type: ignore[no-untyped-call]
    assert largest.elements == max(N * H, V * H) < N * V


@pytest.mark.parametrize("token_loss", LOSSES)
def test_in_bf16_the_products_are_bf16_and_the_loss_and_the_weights_gradient_float32(token_loss: TokenLoss) -> None:
    hidden, head, targets = problem()
    exact = summed_loss(token_loss, hidden, head, targets, 1.0)
    low = hidden.detach().bfloat16().requires_grad_()
    weight, bias = (t.detach().bfloat16().requires_grad_() for t in (head.weight, head.bias) if t is not None)
    weight.grad_dtype = bias.grad_dtype = torch.float32
    low_head = Head(weight, bias, head.softcap)
    rough = summed_loss(token_loss, low, low_head, targets, 1.0, slice_logits=4 * V)
    assert rough.loss.dtype is torch.float32
    torch.testing.assert_close(rough.log_probs, exact.log_probs, rtol=0.02, atol=0.1)
    rough.loss.backward()  # type: ignore[no-untyped-call]
    grads = [tensor.grad for tensor in (low, weight, bias)]
    assert [grad.dtype for grad in grads if grad is not None] == [torch.bfloat16, torch.float32, torch.float32]
    for near, true in zip(grads, gradients(exact.loss, hidden, head), strict=True):
        assert near is not None
        assert torch.nn.functional.cosine_similarity(near.float().flatten(), true.flatten(), dim=0) > 0.99


def test_the_weights_gradient_does_not_lose_small_terms_of_many_slices() -> None:
    """A bf16 sum stops growing at 256: here it has 512 equal terms, each from a slice of its own."""
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weight.grad_dtype = torch.float32
    summed_loss(
        nll, hidden, Head(weight), Targets(torch.zeros(512, dtype=torch.int64)), 1.0, slice_logits=2
    ).loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-256.0, 256.0]


@pytest.mark.parametrize("token_loss", LOSSES)
def test_what_a_gpu_compiles_is_one_graph_for_slices_of_any_length_at_any_temperature(token_loss: TokenLoss) -> None:
    """Its graphs there and back, computed operator by operator; the kernels are made where there is a GPU."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(score_slice, dynamic=True, fullgraph=True, backend=counter)
    for length, tau in ((7, 1.0), (5, 0.6), (11, 0.8)):
        torch.manual_seed(length)
        logits = torch.randn(length, V).bfloat16().requires_grad_()
        targets = Targets(torch.randint(V, (length,)), torch.randn(length) - 3, torch.randn(length))
        found = traced(token_loss, logits, targets, 5.0, torch.full((), tau))
        expected = score_slice(token_loss, logits, targets, 5.0, tau)
        torch.testing.assert_close(found, expected)
        (gradient,), (exact,) = (torch.autograd.grad(losses.loss.sum(), logits) for losses in (found, expected))
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, exact)
    assert counter.frame_count == 1
