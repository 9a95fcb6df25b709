"""What the paper's recipe does that the default does not, as docs/method.md says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import SamplingConfig, TrainingConfig
from learner.data.curriculum import Curriculum
from learner.data.prompts import Prompt
from learner.data.schedule import learning_rate
from learner.training.optimizer import Optimizer
from services.errors import ConfigError

PAPER: dict[str, Any] = {"recipe": "paper", "learning_rate": 1.0, "warmup_steps": 20, "steps_per_round": 2}


def curriculum(prompts: int, **training: Any) -> Curriculum:
    made = [Prompt(row, "?", None, np.array([1], dtype=np.int32)) for row in range(prompts)]
    return Curriculum(
        made,
        seed=1,
        training=TrainingConfig(prompts_per_round=4, **training),
        sampling=SamplingConfig(tau_start=0.6),
        stop_token_ids=(),
    )


def rates(config: TrainingConfig, steps: int) -> list[float]:
    return [learning_rate(config, step) for step in range(steps)]


def test_the_papers_warm_up_counts_rounds_and_its_first_round_moves_nothing() -> None:
    found = rates(TrainingConfig(**PAPER), 24)
    assert found[:4] == [0.0, 0.0, 0.1, 0.1]
    assert found[18:] == [0.9, 0.9, 1.0, 1.0, 1.0, 1.0]


def test_the_default_warm_up_counts_steps_and_wastes_none() -> None:
    assert rates(TrainingConfig(learning_rate=1.0, warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_papers_offline_rate_is_a_cosine_to_0_after_a_warm_up_from_0() -> None:
    config = TrainingConfig(**PAPER | {"data": "fixed", "rounds": 12, "warmup_steps": 4, "steps_per_round": 2})
    expected = [0.0, 0.25, 0.5, 0.75] + [(1 + math.cos(math.pi * done / 20)) / 2 for done in range(21)]
    assert rates(config, 25) == pytest.approx(expected)
    assert learning_rate(config, 24) == pytest.approx(0.0)


def test_a_cosine_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set training\.rounds"):
        TrainingConfig(recipe="paper", data="fixed")


@pytest.mark.parametrize(
    ("changes", "betas"),
    [({}, (0.9, 0.999)), ({"recipe": "paper"}, (0.9, 0.999)), (PAPER | {"data": "fixed", "rounds": 3}, (0.9, 0.95))],
)
def test_betas_are_those_of_the_papers_trainer(changes: dict[str, Any], betas: tuple[float, float]) -> None:
    made = Optimizer({"w": torch.zeros(2, requires_grad=True)}, TrainingConfig(**changes))
    assert made._torch[0].param_groups[0]["betas"] == betas


def test_the_papers_epochs_take_whole_rounds_of_different_prompts() -> None:
    paper, default = curriculum(11, recipe="paper", epochs=2.0), curriculum(11, epochs=2.0)
    assert (paper.rounds_total, default.rounds_total) == (4, 5)
    first = [prompt.row for round_ in (0, 1) for prompt in paper.prompts_of(round_)]
    second = [prompt.row for round_ in (2, 3) for prompt in paper.prompts_of(round_)]
    assert len(set(first)) == len(set(second)) == 8
    assert first != second
    assert [paper.epoch_at(round_) for round_ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert [prompt.row for round_ in range(3) for prompt in default.prompts_of(round_)][:11] != first


def test_a_fixed_set_under_the_paper_is_drawn_once_and_holds_every_later_epoch() -> None:
    paper = curriculum(11, recipe="paper", data="fixed", rounds=6, warmup_steps=0)
    drawn = {prompt.row for round_ in paper.drawn_rounds() for prompt in paper.prompts_of(round_)}
    assert list(paper.drawn_rounds()) == [0, 1]
    assert sum(len(paper.tasks_of(round_)) for round_ in paper.drawn_rounds()) == 8
    assert {prompt.row for round_ in range(6) for prompt in paper.prompts_of(round_)} <= drawn


def test_fewer_prompts_than_a_round_are_refused_by_a_recipe_of_whole_rounds() -> None:
    with pytest.raises(ConfigError, match="3 prompts are less than one"):
        curriculum(3, recipe="paper")
