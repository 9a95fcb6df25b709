"""What a learner records of a round."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.data.prompts import Prompt
from learner.monitoring.collapse import Health
from learner.monitoring.records import Answer
from services.contracts import RoundMetrics
from tests.support.tiny_models import rollout


def metrics_of(round_: int) -> RoundMetrics:
    values: dict[str, Any] = {name: 0 for name, field in RoundMetrics.model_fields.items() if field.is_required()}
    return RoundMetrics(**(values | {"round": round_, "weight_version": round_ + 1}))


def answers_of(round_: int) -> list[Answer]:
    given = rollout(0, [1, 2], [3, 4, 5]).model_copy(update={"round": round_})
    prompt = Prompt(row=9, question="1+1=", answer=None, tokens=np.array([1, 2], dtype=np.int32))
    return [Answer(prompt, given, "zwei", 0.25)]


SOUND = Health(
    response_length_mean=100.0,
    truncated_ratio=0.1,
    repetition_ratio=0.1,
    distinct_ratio=1.0,
    entropy=0.5,
    nll_tau_1=0.4,
    nll_tau_s=0.3,
)
