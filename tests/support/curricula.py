"""Curricula of numbered prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.config import SamplingConfig, TrainingConfig
from learner.data.curriculum import Curriculum
from learner.data.prompts import Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(i, f"question {i}", None, np.array([i, i + 1], dtype=np.int32)) for i in range(count)]


def curriculum(
    count: int, per_round: int, *, seed: int = 3, sampling: dict[str, Any] | None = None, **training: Any
) -> Curriculum:
    return Curriculum(
        prompts(count),
        seed=seed,
        training=TrainingConfig(prompts_per_round=per_round, steps_per_round=1, **training),
        sampling=SamplingConfig(**(sampling or {})),
        stop_token_ids=[7, 9],
    )


def indexes(course: Curriculum, rounds: range) -> list[int]:
    return [prompt.row for number in rounds for prompt in course.prompts_of(number)]
