"""Power sampling: what is drawn, how often, and a step on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.algorithms.base import ScoredGroup, group_seed
from learner.algorithms.power import ALPHA, signals
from tests.support.algorithm_steps import GROUPS, PROMPTS, rollouts, same_step, taken
from tests.support.plain_model import own_logits, plain_model
from tests.support.tiny_models import save

DRAWS = 4000


def test_an_answer_is_drawn_in_proportion_to_its_power() -> None:
    log_p = torch.tensor([-2.0, -2.2, -2.5], dtype=torch.float64)
    expected = ((ALPHA - 1) * log_p).softmax(0)
    drawn = torch.zeros(3, dtype=torch.float64)
    for seed in range(DRAWS):
        weights = [signal.weight for signal in signals(ScoredGroup(tuple(log_p.tolist()), (5, 5, 5), seed))]
        assert sorted(weights) == [0.0, 0.0, 1.0]
        drawn += torch.tensor(weights)
    assert (drawn / DRAWS).tolist() == pytest.approx(expected.tolist(), abs=0.03)  # four standard errors


def test_the_same_group_draws_the_same_again_and_very_unlikely_answers_are_no_trouble() -> None:
    group = ScoredGroup((-4000.0, -4001.0), (900, 900), seed=7)
    assert signals(group) == signals(group)


def test_a_step_is_the_nll_of_the_drawn_answers(tmp_path: Path) -> None:
    plain, given = plain_model(save(tmp_path)), rollouts()
    tokens = [torch.tensor(rollout.response_tokens, dtype=torch.int64) for rollout in given]
    totals = [
        taken(own_logits(plain, one).detach().log_softmax(-1), ids).sum().item()
        for one, ids in zip(given, tokens, strict=True)
    ]
    drawn = []
    for position, group in zip(range(PROMPTS), GROUPS, strict=True):
        seed = group_seed(position, [given[index].response_tokens for index in group])
        found = signals(
            ScoredGroup(tuple(totals[index] for index in group), tuple(len(tokens[i]) for i in group), seed)
        )
        drawn += [index for index, signal in zip(group, found, strict=True) if signal.weight]
    assert len(drawn) == PROMPTS

    def loss(log_p: Callable[[int], torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
        return -torch.cat([taken(log_p(index), tokens[index]) for index in drawn]).mean()

    stats = same_step(tmp_path, "power", loss)
    assert tuple(signal.reward for signal in stats.signals) == tuple(
        float(index in drawn) for index in range(len(given))
    )
