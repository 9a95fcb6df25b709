"""Benchmarks by name and by path, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog
from transformers import PreTrainedTokenizerBase

from learner.config import DataConfig
from learner.evaluation.benchmarks import HUB_BENCHMARKS, load_benchmarks, resolve_benchmark
from services.errors import ConfigError, DataError
from studies.addition import make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


def problems(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_known_name_is_a_data_set_on_the_hub() -> None:
    assert resolve_benchmark("gsm8k") == ("gsm8k", "openai/gsm8k:main", "test")
    assert set(HUB_BENCHMARKS) == {"math500", "amc23", "minerva", "olympiadbench", "aime24", "aime25", "gsm8k"}


def test_a_name_with_a_path_is_that_file() -> None:
    assert resolve_benchmark("mine=some/held-out=1.jsonl") == ("mine", "some/held-out=1.jsonl", "test")


@pytest.mark.parametrize("text", ["", "mean", "mean=x.jsonl", "a b=x.jsonl", "x=", "=x.jsonl", "a/b", "x" * 41])
def test_a_malformed_benchmark_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH"):
        resolve_benchmark(text)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="math500, amc23"):
        resolve_benchmark("math5000")


def test_problems_are_rendered_like_training_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = problems(tmp_path / "held.jsonl", {"question": "1+2", "answer": "3"}, {"question": "3+4", "answer": "7"})
    data = DataConfig(question_suffix="=", chat_template="none")
    (benchmark,) = load_benchmarks([f"held={path}"], data, tokenizer, limit=1)
    (prompt,) = benchmark.prompts
    assert tokenizer.decode(prompt.tokens.tolist()) == "1+2="
    assert (benchmark.name, prompt.answer, prompt.question) == ("held", "3", "1+2")


def test_problems_without_an_answer_are_left_out_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = ({"question": "1+2=", "answer": "proof"}, {"question": "3+4=", "answer": "7"}, {"question": "5+6="})
    path = problems(tmp_path / "held.jsonl", *rows)
    with structlog.testing.capture_logs() as logs:
        (benchmark,) = load_benchmarks([f"held={path}"], DataConfig(chat_template="none"), tokenizer, limit=None)
    assert [prompt.row for prompt in benchmark.prompts] == [1]
    assert [(log["problems"], log["left_out_without_reference"]) for log in logs] == [(1, 2)]


def test_a_benchmark_without_any_answer_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = problems(tmp_path / "held.jsonl", {"question": "1+2="})
    with pytest.raises(DataError, match="none of the 1 problems"):
        load_benchmarks([f"held={path}"], DataConfig(chat_template="none"), tokenizer, limit=None)


def test_a_problem_that_is_too_long_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = problems(tmp_path / "held.jsonl", {"question": "1+2=", "answer": "3"})
    with pytest.raises(DataError, match=r"set data\.max_prompt_tokens to 4"):
        load_benchmarks([f"held={path}"], DataConfig(chat_template="none", max_prompt_tokens=3), tokenizer, limit=None)


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"question": "1+3=", "answer": "3"}, {}),
        ({"question": "1+2=", "answer": "4"}, {}),
        ({"question": "1+2=", "answer": "3"}, {"question_suffix": "1"}),
    ],
)
def test_a_benchmark_is_known_by_questions_references_and_rendered_prompts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: dict[str, str], settings: dict[str, str]
) -> None:
    def digests(row: dict[str, str], count: int = 2, **settings: str) -> dict[str, str]:
        path = problems(tmp_path / "held.jsonl", row, {"question": "2+2=", "answer": "4"})
        data = DataConfig.model_validate({"chat_template": "none", **settings})
        (benchmark,) = load_benchmarks([f"held={path}"], data, tokenizer, limit=count)
        return benchmark.digests

    same = {"question": "1+2=", "answer": "3"}
    assert digests(same) == digests(same)
    assert digests(row, 2, **settings) != digests(same)
    assert digests(same, 1) != digests(same)


@pytest.mark.parametrize("given", [[], ["a=x.jsonl", "a=y.jsonl"]])
def test_no_benchmark_or_one_twice_is_refused(given: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="none, or one twice"):
        load_benchmarks(given, DataConfig(), tokenizer, limit=None)
