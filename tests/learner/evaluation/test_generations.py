"""Answers of one evaluation never count for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.config import DataConfig
from learner.data.prompts import Prompt
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.eval_tasks import EvalSampling, describe_asking
from learner.evaluation.generations import Generation, Generations, is_described_by
from learner.grading.math_grading import Outcome
from services.errors import ConfigError
from services.run_folder import EvaluationFolder


def benchmark(
    name: str = "held", *, question: str = "1+1?", answer: str = "2", tokens: tuple[int, ...] = (1, 2)
) -> Benchmark:
    return Benchmark(name, [Prompt(0, question, answer, np.array(tokens, dtype=np.int32))])


def asking(*benchmarks: Benchmark, stop: tuple[int, ...] = (1,), top_p: float = 1.0, **data: Any) -> dict[str, Any]:
    sampling = EvalSampling(samples=2, max_response_tokens=8, top_p=top_p, stop_token_ids=stop)
    return {"digest": "d"} | describe_asking(DataConfig(**data), sampling, benchmarks or (benchmark(),))


def answered(folder: EvaluationFolder, meta: dict[str, Any]) -> Generations:
    generations = Generations(folder, meta)
    generations.add([Generation("held", 1.0, 0, 0, Outcome.CORRECT, "1+1?", "2", "2", "2", "stop", 1, 0, "g")])
    return generations


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (asking(benchmark(question="2+2?")), "benchmark held"),
        (asking(benchmark(answer="3")), "benchmark held"),
        (asking(benchmark(tokens=(1, 3))), "benchmark held"),
        (asking(stop=(1, 2)), "stop_token_ids"),
        (asking(top_p=0.9), "top_p"),
        (asking(system_prompt="Think."), "system_prompt"),
        (asking(question_suffix="!"), "question_suffix"),
        (asking(chat_template="none"), "chat_template"),
        (asking() | {"grader": "another"}, "grader"),
        (asking() | {"grading": "strict"}, "grading"),
        (asking() | {"digest": "e"}, "digest"),
    ],
)
def test_changed_input_is_refused_or_sampled_anew(tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    folder = EvaluationFolder(tmp_path)
    answered(folder, asking())
    with pytest.raises(ConfigError, match=f"it differs in {what}"):
        Generations(folder, changed)
    assert Generations(folder, asking()).known == {("held", 1.0, 0, 0)}, "the refusal changed nothing"
    assert not is_described_by(folder, changed)
    assert Generations(folder, changed, replace=True).known == set()
    assert Generations(folder, changed).known == set()


def test_another_benchmark_joins_the_answers_that_are_there(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    answered(folder, asking())
    assert Generations(folder, asking(benchmark("other", question="9"))).known == {("held", 1.0, 0, 0)}
    with pytest.raises(ConfigError, match="benchmark held"):
        Generations(folder, asking(benchmark(question="2+2?")))
    with pytest.raises(ConfigError, match="benchmark other"):
        Generations(folder, asking(benchmark(), benchmark("other", question="8")))
    assert is_described_by(folder, asking())


def test_a_description_of_an_earlier_release_is_another_evaluation(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    old = {key: value for key, value in asking().items() if key not in ("stop_token_ids", "benchmarks")}
    answered(folder, old)
    with pytest.raises(ConfigError, match="stop_token_ids"):
        Generations(folder, asking())


@pytest.mark.parametrize("damaged", ["", "[]", '{"model": ', "\0\0"])
def test_a_description_that_is_damaged_is_no_description(damaged: str, tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    answered(folder, asking())
    folder.meta.write_text(damaged)
    assert not is_described_by(folder, asking())
    with pytest.raises(ConfigError, match="which cannot be read"):
        Generations(folder, asking())
    assert Generations(folder, asking(), replace=True).known == set()


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b"[]", b'{"outcome": "?"}', b"{}", b"7"])
def test_answers_that_are_damaged_are_sampled_again(damaged: bytes, tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    answered(folder, asking())
    with folder.generations.open("ab") as file:
        file.write(damaged + b"\n")
    assert Generations(folder, asking()).known == {("held", 1.0, 0, 0)}
