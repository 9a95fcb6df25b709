"""GRPO: its clip, its advantages, its rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.algorithms.base import Group, ScoredGroup, Targets
from learner.algorithms.entropy_reward import negative_entropy
from learner.algorithms.grpo import GRPO, advantages, by_mean_score, grpo, signals, with_grpo_loss
from tests.support.judging import SameText


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
    tokens, known = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    for targets in (Targets(tokens), Targets(tokens, old_log_probs=known), Targets(tokens, signals=known)):
        with pytest.raises(ValueError, match=r"^grpo needs the old log-probabilities and the advantages$"):
            grpo(torch.zeros(1, 2), targets)
    assert grpo(torch.zeros(1, 2), Targets(tokens, known, known)).loss.tolist() == [0.0]


def test_an_advantage_is_relative_to_the_answers_to_the_same_prompt() -> None:
    third = 3**0.5 / 3
    assert advantages([1.0, 0.0, 0.0]) == pytest.approx([2 * third, -third, -third], abs=1e-5)
    assert advantages([5.0, 5.0]) == [0.0, 0.0]
    assert advantages([3.0]) == [0.0], "one answer has nothing to be compared with"


def test_a_right_answer_earns_1_and_outweighs_wrong_ones() -> None:
    right, wrong = signals(Group("4", ("4", "5")), SameText())
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.weight == -wrong.weight > 0


def test_old_log_probabilities_need_the_whole_round() -> None:
    with pytest.raises(ValueError, match="whole round"):
        replace(GRPO, needs_whole_round=False)


def test_an_algorithm_with_this_loss_has_its_own_rewards() -> None:
    from_texts = with_grpo_loss("mine", signals=signals, needs_references=True)
    assert (from_texts.name, from_texts.losses, from_texts.signals) == ("mine", grpo, signals)
    assert (from_texts.score, from_texts.score_signals, from_texts.needs_references) == (None, None, True)
    from_tokens = with_grpo_loss("mine", score=negative_entropy)
    assert (from_tokens.score, from_tokens.score_signals) == (negative_entropy, by_mean_score)
    assert (from_tokens.signals, from_tokens.needs_references) == (None, False)
    for algorithm in (from_texts, from_tokens):
        assert algorithm.needs_whole_round is True
        assert algorithm.needs_old_log_probs is True
        assert algorithm.smallest_group == 2, "one answer has nothing to be compared with"
        assert algorithm.has_signals
        assert not algorithm.counts_kept_tokens


def test_a_mean_score_is_compared_with_those_of_the_other_answers() -> None:
    better, worse = by_mean_score(ScoredGroup((-2.0, -9.0), (4, 6)))
    assert (better.reward, worse.reward) == (-0.5, -1.5)
    assert better.weight == -worse.weight > 0
