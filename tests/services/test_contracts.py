from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from services.contracts import MAX_TOKENS, Rollout, RoundMetrics, Task, WeightManifest
from tests.support.recorded_run import metrics

DIGEST = "0" * 64


def rollout(**changes: Any) -> Rollout:
    values: dict[str, Any] = {
        "task_id": "r000003-00001",
        "sample": 0,
        "round": 3,
        "position": 1,
        "prompt_tokens": [1, 2],
        "response_tokens": [3, 4, 5],
        "finish_reason": "stop",
        "temperature": 0.6,
        "spans": [
            {"weight_version": 2, "start": 0, "end": 1},
            {"weight_version": 3, "start": 1, "end": 3},
        ],
        "generator_id": "g0",
        "queued_s": 0.0,
        "generate_s": 0.1,
    }
    return Rollout.model_validate(values | changes)


def test_staleness_counts_from_the_oldest_token() -> None:
    assert rollout().staleness == 1


def test_token_bytes_and_lists_mean_the_same() -> None:
    ids = np.array([3, 4, 5], dtype="<i4")
    assert rollout(response_tokens=ids.tobytes()) == rollout(response_tokens=[3, 4, 5])


def test_tokens_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        rollout().response_tokens[0] = 9


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [{"weight_version": 2, "start": 0, "end": 2}],
        [{"weight_version": 2, "start": 1, "end": 3}],
        [{"weight_version": 3, "start": 0, "end": 1}, {"weight_version": 2, "start": 1, "end": 3}],
        [{"weight_version": 2, "start": 0, "end": 2}, {"weight_version": 3, "start": 1, "end": 3}],
    ],
)
def test_spans_must_cover_the_response_in_order(spans: list[dict[str, int]]) -> None:
    with pytest.raises(ValidationError, match="spans"):
        rollout(spans=spans)


@pytest.mark.parametrize("tokens", [[-1], [2**31], [0.5], [[1]], b"abc", [0] * (MAX_TOKENS + 1)])
def test_bad_tokens_are_refused(tokens: Any) -> None:
    with pytest.raises(ValidationError):
        rollout(prompt_tokens=tokens)


def test_an_unknown_field_or_schema_is_refused_by_name() -> None:
    values = rollout().model_dump()
    for change in ({"extra": 1}, {"schema_version": 2}):
        with pytest.raises(ValidationError, match=next(iter(change))):
            Rollout.model_validate(values | change)


def test_a_round_s_line_is_read_back_and_knows_no_other_field() -> None:
    line = metrics(3, entropy=0.5).as_line()
    assert RoundMetrics.model_validate_json(line) == metrics(3, entropy=0.5)
    assert "null" not in line
    with pytest.raises(ValidationError, match="surprise"):
        metrics(3, surprise=1)


def test_a_task_id_cannot_hold_a_path() -> None:
    with pytest.raises(ValidationError, match="task_id"):
        Task(
            task_id="../x",
            round=0,
            position=0,
            prompt_tokens=np.array([1]),
            temperature=1,
            max_response_tokens=1,
            min_weight_version=0,
        )


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", "a\0"])
def test_a_manifest_names_only_plain_files(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        WeightManifest.model_validate(
            {
                "run_id": "r",
                "weight_version": 0,
                "digest": DIGEST,
                "tensors": [],
                "files": [{"name": name, "kind": "delta", "size_bytes": 1, "digest": DIGEST}],
                "created_at": 0.0,
            }
        )
