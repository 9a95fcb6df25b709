"""Loads benchmarks by name, as prompts with reference answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from learner.config import DataConfig
from learner.data.dataset import read_questions
from learner.data.prompts import Prompt, tokenize
from services.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = structlog.get_logger()

HUB_BENCHMARKS = {
    "math500": ("HuggingFaceH4/MATH-500", "test"),
    "amc23": ("math-ai/amc23", "test"),
    "minerva": ("math-ai/minervamath", "test"),
    "olympiadbench": ("math-ai/olympiadbench", "test"),
    "aime24": ("math-ai/aime24", "test"),
    "aime25": ("math-ai/aime25", "test"),
    "gsm8k": ("openai/gsm8k:main", "test"),
}
"""Name -> data set on the Hugging Face hub, and split."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The prompts of one benchmark, each with its reference answer."""

    name: str
    prompts: Sequence[Prompt]


def resolve_benchmark(text: str) -> tuple[str, str, str]:
    """(name, path, split) of a benchmark given as a name in HUB_BENCHMARKS or as NAME=PATH.

    resolve_benchmark("gsm8k")                    ("gsm8k", "openai/gsm8k:main", "test")
    resolve_benchmark("mine=held-out.jsonl")      ("mine", "held-out.jsonl", "test")
    """
    name, equals, path = text.partition("=")
    if not _NAME.fullmatch(name) or name == "mean" or (equals and not path):
        raise ConfigError(
            f"benchmark {text!r} is not of the form NAME or NAME=PATH",
            hint='a name has at most 40 letters, digits and "._-", and is not "mean"',
        )
    if equals:
        return name, path, "test"
    if name not in HUB_BENCHMARKS:
        raise ConfigError(
            f"benchmark {name} is not known", hint=f"known are {', '.join(HUB_BENCHMARKS)}; others are NAME=PATH"
        )
    return name, *HUB_BENCHMARKS[name]


def load_benchmarks(
    given: Sequence[str], data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, limit: int | None
) -> list[Benchmark]:
    """The benchmarks, rendered like training prompts: system prompt, question suffix and chat template of [data].

    Problems without a reference answer, such as proofs, are left out and counted in the log: nothing can be checked.
    ConfigError for an unknown or repeated name; DataError when no problem is left, and for one longer than
    `data.max_prompt_tokens`: leaving it out would change what the benchmark measures.
    """
    named = [resolve_benchmark(text) for text in given]
    if not named or len({name for name, _, _ in named}) < len(named):
        raise ConfigError(
            f"evaluation.benchmarks = {list(given)} names none, or one twice", hint="name each benchmark once"
        )
    return [Benchmark(name, _prompts(path, split, data, tokenizer, limit)) for name, path, split in named]


def _prompts(
    path: str, split: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> list[Prompt]:
    questions = read_questions(path, split=split, limit=limit)
    checkable = [question for question in questions if question.answer]
    if not checkable:
        raise DataError(
            f"none of the {len(questions)} problems of {path} has a reference answer that can be checked",
            hint="give the rows an answer; proofs cannot be graded",
        )
    prompts = tokenize(checkable, data, tokenizer)
    for prompt in prompts:
        if prompt.tokens.size > data.max_prompt_tokens:
            raise DataError(
                f"{path} row {prompt.row} has {prompt.tokens.size} tokens, the limit is {data.max_prompt_tokens}",
                hint=f"set data.max_prompt_tokens to {prompt.tokens.size} or more",
            )
    log.info(
        "benchmark_loaded", path=path, problems=len(prompts), left_out_without_reference=len(questions) - len(prompts)
    )
    return prompts
