"""SePT (offline): every prompt answered once, trained in every epoch."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from learner.rollouts.fixed_data import FixedData
from services.contracts import Rollout, Task, VersionSpan
from tests.support.curricula import curriculum, indexes


def answers(task: Task) -> list[Rollout]:
    return [
        Rollout(
            task_id=task.task_id,
            sample=sample,
            round=task.round,
            position=task.position,
            prompt_tokens=task.prompt_tokens,
            response_tokens=[int(task.prompt_tokens[0]), sample],
            finish_reason="stop",
            temperature=task.temperature,
            spans=(VersionSpan(weight_version=0, start=0, end=2),),
            generator_id="g",
            queued_s=0.0,
            generate_s=0.0,
        )
        for sample in range(task.samples)
    ]


@pytest.mark.parametrize(("prompts", "per_round"), [(12, 4), (10, 4), (3, 8)], ids=["even", "straddling", "repeating"])
def test_every_prompt_is_drawn_once_and_every_round_filled_in_the_curriculums_order(
    prompts: int, per_round: int
) -> None:
    course = curriculum(prompts, per_round, data="fixed", epochs=3, sampling={"rollouts_per_prompt": 2})
    tasks = [task for round_ in course.drawn_rounds() for task in course.tasks_of(round_)]
    assert sorted(int(task.prompt_tokens[0]) for task in tasks) == list(range(prompts))
    assert {(task.min_weight_version, task.max_weight_version, task.temperature) for task in tasks} == {(0, 0, 0.6)}

    data = FixedData(course, [rollout for task in tasks for rollout in answers(task)])
    seen = defaultdict(set)
    for round_ in range(course.rounds_total):
        rollouts = list(data.of(round_))
        assert [(r.round, r.position, r.sample) for r in rollouts] == [
            (round_, index, sample) for index in range(per_round) for sample in range(2)
        ]
        assert [int(r.response_tokens[0]) for r in rollouts[::2]] == indexes(course, range(round_, round_ + 1))
        for rollout in rollouts:
            seen[int(rollout.prompt_tokens[0])].add(rollout.rollout_id)
    assert all(len(drawn) == 2 for drawn in seen.values())


def test_a_run_shorter_than_an_epoch_draws_what_it_trains_on() -> None:
    course = curriculum(100, 4, data="fixed", rounds=3)
    assert course.drawn_rounds() == range(3)
    assert np.sum([len(course.tasks_of(round_)) for round_ in course.drawn_rounds()]) == 12
