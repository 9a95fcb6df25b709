"""Whatever a task fixes is compared with its answer, and an honest answer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.rollouts.answer_check import AnswerCheck, Fault, fault_of_version
from services.contracts import Rollout, VersionSpan
from services.tensors import RawTensor
from services.weights.publisher import WeightPublisher
from tests.support.answering import rollout_of
from tests.support.stream_builders import make_task

TASK = make_task(0, stop_token_ids=(7, 9), max_response_tokens=6, round=3, min_weight_version=2)
CHECK = AnswerCheck(vocabulary=60)


def answer(tokens: list[int], finish_reason: str = "stop", version: int = 3, **changes: Any) -> Rollout:
    spans = (VersionSpan(weight_version=version, start=0, end=len(tokens)),)
    honest = rollout_of(TASK).model_dump()
    return Rollout(**(honest | {"response_tokens": tokens, "finish_reason": finish_reason, "spans": spans} | changes))


@pytest.mark.parametrize(
    "honest",
    [
        rollout_of(TASK),
        answer([9]),
        answer([59, 1, 2, 3, 4, 7]),
        answer([1, 2, 3, 4, 5, 6], "length"),
        answer([1, 7], version=2),
    ],
)
def test_an_honest_answer_has_no_fault(honest: Rollout) -> None:
    assert CHECK.fault(honest, TASK) is None
    assert CHECK.fault(honest, None) is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (answer([60, 7]), "token id 60 is not below the vocabulary's 60"),
        (answer([1, 2, 3, 4, 5, 6, 7]), "7 tokens, the task allows 6"),
        (answer([1, 9], temperature=0.7), "sampled at temperature 0.7, the task asks for 0.6"),
        (answer([1, 9], temperature=0.0), "sampled at temperature 0, the task asks for 0.6"),
        (
            answer([1, 9], top_k=20),
            "sampled with top_p, top_k, min_p = (1.0, 20, 0.0), the task asks for (1.0, 0, 0.0)",
        ),
        (answer([1, 9], min_p=0.1), "the task asks for (1.0, 0, 0.0)"),
        (answer([1, 2]), "finish reason stop, and its last token 2 says otherwise"),
        (answer([1, 2, 3, 4, 5, 7], "length"), "finish reason length, and its last token 7 says otherwise"),
        (answer([1, 2, 3], "length"), "finish reason length after 3 tokens, the task allows 6"),
        (answer([1, 9, 2, 7]), "token 1 of 4 is a stop token already"),
        (answer([1, 9], prompt_tokens=[1, 2]), "its prompt is not the task's"),
        (answer([1, 9], task_id="r000003-00001"), "not r000003-00001"),
        (answer([1, 9], sample=1), "sample 1 of a task with 1"),
        (answer([1, 9], version=1), "sampled by version 1, the task needs 2"),
    ],
)
def test_what_a_task_fixes_is_compared(wrong: Rollout, reason: str) -> None:
    fault = CHECK.fault(wrong, TASK)
    assert fault is not None
    assert reason in fault.reason
    assert fault.blamed


GOOD, BAD = "a" * 64, "b" * 64


def spanning(*versions: int, **digests: str) -> Rollout:
    """An answer with a token of each of these versions, the last of them a stop token."""
    spans = [
        VersionSpan(weight_version=version, weight_digest=digests.get(f"v{version}", GOOD), start=at, end=at + 1)
        for at, version in enumerate(versions)
    ]
    return answer([*range(10, 9 + len(versions)), 7], spans=spans)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (spanning(1, 2, 3), "sampled by version 1, the task needs 2"),
        (spanning(2, 3, 4), "sampled by version 4, which is after the task's 3"),
        (spanning(2, 3, v2=BAD), "version 2 is bad"),
        (spanning(2, 3, v3=BAD), "version 3 is bad"),
    ],
)
def test_every_version_of_an_answer_counts(wrong: Rollout, reason: str) -> None:
    def published(version: int, digest: str | None) -> Fault | None:
        return None if digest == GOOD else Fault(f"version {version} is bad")

    check = AnswerCheck(vocabulary=60, published=published)
    assert check.fault(spanning(2, 3), TASK) is None
    fault = check.fault(wrong, TASK)
    assert fault is not None
    assert reason in fault.reason


def test_nobody_is_blamed_for_a_version_that_the_learner_went_back_from() -> None:
    fault = CHECK.fault(answer([1, 9], version=4), TASK)
    assert fault is not None
    assert not fault.blamed


def test_only_published_bytes_count_as_a_version(tmp_path: Path) -> None:
    store = WeightPublisher(tmp_path, "run")

    def publish(version: int, value: float) -> str:
        data = np.full(64, value, dtype=np.float32).view(np.uint8)
        return store.publish(version, {"w": RawTensor("F32", (64,), data)}).digest

    first = publish(0, 0.0)
    before = publish(1, 1.0)
    now = publish(1, 2.0)
    assert fault_of_version(store, 0, first) is None
    assert fault_of_version(store, 1, now) is None
    republished, forged, unpublished, none = (
        fault_of_version(store, version, digest)
        for version, digest in ((1, before), (1, "0" * 64), (2, "0" * 64), (0, None))
    )
    assert republished is not None
    assert not republished.blamed, "it was the version when it was sampled"
    for fault in (forged, unpublished, none):
        assert fault is not None
        assert fault.blamed
