"""Whether a rollout is what its task asked for, sampled by versions that this learner published.

A generator may run another release, another model or somebody else's code: whatever a task fixes is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from services.contracts import Rollout, Task
from services.errors import WeightError
from services.weights.publisher import WeightPublisher

MAX_FAULTY_TASKS = 3
"""A generator that answered so many tasks wrongly is refused for REFUSED_S."""
REFUSED_S = 60.0
"""Long enough to end what floods the queue, short enough for a generator that was mended, or wrongly named."""


class Fault(NamedTuple):
    """Why a rollout is not taken."""

    reason: str
    blamed: bool = True
    """Whether its generator did wrong. It did not where the learner has gone back, or asks differently now."""


Published = Callable[[int, str | None], Fault | None]
"""The fault of tokens that were sampled by a version with this digest; None where it is as published."""


def as_published(_version: int, _digest: str | None) -> Fault | None:
    """For a collector whose versions nobody knows."""
    return None


def fault_of_version(store: WeightPublisher, version: int, digest: str | None) -> Fault | None:
    """Whether tokens of this version and digest were sampled by what the store publishes."""
    try:
        manifest = store.find(version)
    except WeightError as error:
        return Fault(f"version {version} cannot be checked: {error.message}", blamed=False)
    if manifest is not None and manifest.digest == digest:
        return None
    known = "is not published" if manifest is None else f"has the digest {manifest.digest[:12]}"
    return Fault(
        f"sampled by version {version} with the digest {(digest or 'none')[:12]}, and that version {known}",
        blamed=digest not in store.retracted,
    )


class AnswerCheck:
    """Checks rollouts for one model; `vocabulary`: token ids lie below it, None where it is not known."""

    def __init__(self, vocabulary: int | None = None, published: Published = as_published) -> None:
        self._vocabulary = vocabulary
        self._published = published

    def fault(self, rollout: Rollout, task: Task | None) -> Fault | None:
        """What is wrong, None when nothing is. Without its task, only what no task changes is looked at."""
        limit = self._vocabulary
        if limit is not None and (largest := int(rollout.response_tokens.max())) >= limit:
            return Fault(f"token id {largest} is not below the vocabulary's {limit}")
        fault = _fault_by_task(rollout, task) if task is not None else None
        if fault is not None:
            return fault
        faults = (self._published(span.weight_version, span.weight_digest) for span in rollout.spans)
        return next((fault for fault in faults if fault is not None), None)


def _fault_by_task(rollout: Rollout, task: Task) -> Fault | None:
    length, tokens = rollout.response_tokens.size, rollout.response_tokens
    first, last = rollout.spans[0].weight_version, rollout.spans[-1].weight_version
    highest = task.round if task.max_weight_version is None else task.max_weight_version
    stops = np.flatnonzero(np.isin(tokens, task.stop_token_ids))
    if rollout.task_id != task.task_id:
        return Fault(f"position {task.position} of round {task.round} is task {task.task_id}, not {rollout.task_id}")
    if rollout.sample >= task.samples:
        return Fault(f"sample {rollout.sample} of a task with {task.samples}")
    if not np.array_equal(task.prompt_tokens, rollout.prompt_tokens):
        return Fault("its prompt is not the task's")
    if rollout.temperature != task.temperature:
        return Fault(f"sampled at temperature {rollout.temperature:g}, the task asks for {task.temperature:g}")
    asked, sampled = ((one.top_p, one.top_k, one.min_p) for one in (task, rollout))
    if sampled != asked:
        return Fault(f"sampled with top_p, top_k, min_p = {sampled}, the task asks for {asked}")
    if length > task.max_response_tokens:
        return Fault(f"{length} tokens, the task allows {task.max_response_tokens}")
    if stops.size and stops[0] < length - 1:
        return Fault(f"token {stops[0]} of {length} is a stop token already")
    if (rollout.finish_reason == "stop") != bool(stops.size):
        return Fault(f"finish reason {rollout.finish_reason}, and its last token {tokens[-1]} says otherwise")
    if rollout.finish_reason == "length" and length < task.max_response_tokens:
        return Fault(f"finish reason length after {length} tokens, the task allows {task.max_response_tokens}")
    if first < task.min_weight_version:
        return Fault(f"sampled by version {first}, the task needs {task.min_weight_version}")
    if last > highest:  # such a version exists where a learner went back and its generators have not followed yet
        return Fault(f"sampled by version {last}, which is after the task's {highest}", blamed=False)
    return None
