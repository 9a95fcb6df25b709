"""lm-evaluation-harness: its command, its results, and one task of its own on a model folder from local data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from services.errors import UnavailableError
from studies import addition
from studies.general_benchmarks import TASKS, harness_command, newest_results, read_scores, run_general_benchmarks

TASK = """
task: larger
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{target}}}}"
doc_to_choice: ["0", "1"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_the_papers_five_are_asked_through_vllm() -> None:
    command = harness_command("m", Path("out"), TASKS, task_folder=None, backend="vllm", limit=7)
    assert command[command.index("--model") + 1] == "vllm"
    assert command[command.index("--model_args") + 1] == "pretrained=m"
    assert set(TASKS) <= set(command)
    assert command[-2:] == ["--limit", "7"]


def test_scores_are_read_without_their_standard_errors() -> None:
    values = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25, "sample_len": 4}
    assert read_scores({"results": {"x": values}}) == {"x": {"acc": 0.5, "acc_norm": 0.25}}


def test_a_harness_that_left_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no results"):
        newest_results(tmp_path)


@pytest.mark.slow
def test_the_harness_runs_a_task_on_a_model_from_local_data(tmp_path: Path) -> None:
    model = tmp_path / "model"
    addition.save(addition.make_model(), model)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n}+{n}=", "target": n % 2}) + "\n" for n in range(10, 20)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "larger.yaml").write_text(TASK.format(data=data))
    found = run_general_benchmarks(
        str(model), tmp_path / "out", Console(), tasks=["larger"], task_folder=tasks, limit=6
    )
    assert 0 <= found["larger"]["acc"] <= 1


@pytest.mark.slow
def test_a_task_that_does_not_exist_is_explained_with_the_harness_own_words(tmp_path: Path) -> None:
    model = tmp_path / "model"
    addition.save(addition.make_model(), model)
    with pytest.raises(UnavailableError, match="no-such-task"):
        run_general_benchmarks(str(model), tmp_path / "out", Console(), tasks=["no-such-task"])
