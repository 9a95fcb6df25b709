"""Checks what a person gives a run before anything starts: the model's folder, prompts, benchmarks and chat template.

`sept run`, `eval`, `study`, `ray` and `doctor` all use these checks. They take about a second: they load no weights,
import neither torch nor transformers, and read the data for CHECKED_FOR_S. What they cannot see (a later row, the
files of a model that is still on the hub) the learner refuses with the same errors.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from learner.algorithm_list import ALGORITHMS
from learner.config import DataConfig, LearnerSettings
from learner.data.chat_template import ChatTemplate, choose_template
from learner.data.dataset import ACCEPTED, Question, iterate_questions
from learner.data.prompts import conversation_of
from learner.data.readers.formats import format_of
from learner.data.readers.places import is_local, local_files
from learner.data.readers.source import parse_source, split_sources
from learner.evaluation.benchmarks import resolve_benchmarks
from learner.model_folder.check import check_model_folder
from learner.model_folder.hub import is_on_hub
from learner.model_folder.local_folder import local_folder
from learner.model_folder.tokenizer import special_tokens, templates_in
from services.errors import DataError, ModelError, UnavailableError

CHECKED_FOR_S = 0.7
"""Time that a data set is read for."""
PARSED_BYTES = 32 << 20
"""A .json file is parsed whole: larger ones are left to the learner."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Found(NamedTuple):
    """What a check saw."""

    detail: str
    complete: bool = True
    """False for what can only be known later, such as a name on the hub."""


class InputCheck(NamedTuple):
    """One check: the setting that it is about, and a call that raises SeptError or says what is there."""

    setting: str
    run: Callable[[], Found]


def check_inputs(settings: LearnerSettings, *, leader: str = "learner") -> None:
    """Run all checks; raises the first SeptError. An evaluator needs no prompts."""
    for check in input_checks(settings, leader=leader):
        check.run()


def input_checks(settings: LearnerSettings, *, leader: str = "learner") -> list[InputCheck]:
    """The checks that apply to these settings."""
    checks = [InputCheck("model.path", partial(_check_model, settings.model.path))]
    template = partial(_template, settings)
    if leader == "learner":
        checks.append(InputCheck("data.path", partial(_check_prompts, settings, template)))
    if leader == "evaluator" or settings.evaluation.every_rounds:
        checks.append(InputCheck("evaluation.benchmarks", partial(_check_benchmarks, settings, template)))
    return checks


def _check_model(path: str) -> Found:
    folder = local_folder(path)
    if folder is not None:
        check_model_folder(folder)
        return Found(path if folder == Path(path).expanduser() else f"{path}, in the cache at {folder}")
    if not _HUB_ID.fullmatch(path) or format_of(Path(path)) is not None:
        what = f"{path:.200} is neither a folder nor a Hugging Face id" if path else "no model is named"
        raise ModelError(what, hint="set model.path to a folder that exists or a Hugging Face id")
    if not is_on_hub("model", path):
        raise ModelError(
            f"{path} is neither a folder (looked in {Path.cwd()}) nor a model on the Hugging Face hub",
            hint="check model.path; for a private model log in with `hf auth login`",
        )
    return Found(f"{path} will be downloaded from the Hugging Face hub", complete=False)


def _template(settings: LearnerSettings) -> ChatTemplate | None:
    """The chat template; None for plain text, and for that of a model that is not here yet."""
    folder = local_folder(settings.model.path)
    if folder is None:
        if settings.data.chat_template == "auto":
            return None
        return choose_template(settings.data.chat_template, {}, Path(), {})
    return choose_template(settings.data.chat_template, templates_in(folder), folder, special_tokens(folder))


def _check_prompts(settings: LearnerSettings, template: Callable[[], ChatTemplate | None]) -> Found:
    data, algorithm = settings.data, ALGORITHMS[settings.training.algorithm]
    read = [_read(path, data.split, data.limit) for path in split_sources(data.path)]
    questions, whole = [question for each, _, _ in read for question in each], all(whole for _, _, whole in read)
    found = Found("; ".join(one.detail for _, one, _ in read), all(one.complete for _, one, _ in read))
    if algorithm.needs_references and whole and not any(question.answer for question in questions):
        raise DataError(
            f"training.algorithm {algorithm.name} needs reference answers, and none of the {len(questions)} prompts "
            f"of {data.path} has one that can be checked",
            hint="give the rows an answer, or train with algorithm nll, which needs none",
        )
    _check_rendering(questions, data, template())
    return found


def _check_benchmarks(settings: LearnerSettings, template: Callable[[], ChatTemplate | None]) -> Found:
    evaluation = settings.evaluation
    details = []
    chosen = template()
    for name, path, split in resolve_benchmarks(evaluation.benchmarks):
        questions, found, whole = _read(path, split, evaluation.limit)
        if whole and not any(question.answer for question in questions):
            raise DataError(
                f"none of the {len(questions)} problems of {path} has a reference answer that can be checked",
                hint="give the rows an answer; proofs cannot be graded",
            )
        _check_rendering(questions, settings.data, chosen)
        details.append(Found(f"{name}: {found.detail}", found.complete))
    return Found("; ".join(found.detail for found in details), all(found.complete for found in details))


def _read(path: str, split: str, limit: int | None) -> tuple[list[Question], Found, bool]:
    """The rows that can be read within CHECKED_FOR_S, and whether these are all; none of a data set on the hub."""
    source = parse_source(path)
    if not is_local(source.path):
        _check_hub_has(source.path)
        return [], Found(f"{path} will be loaded from the Hugging Face hub", complete=False), False
    for file in local_files(source.path, split) or []:
        if not file.is_file():
            raise DataError(f"{file} is no file", hint="check data.path")
        if format_of(file) == ".json" and file.stat().st_size > PARSED_BYTES:
            return [], Found(f"{path} is there; it is too large to be read in advance", complete=False), False
    started = time.monotonic()
    questions = list(_within(CHECKED_FOR_S, islice(iterate_questions(source, split), limit)))
    if not questions:
        raise DataError(f"{path} holds no rows", hint=f"name a data set with prompts: {ACCEPTED}")
    whole = time.monotonic() - started < CHECKED_FOR_S
    return questions, Found(f"{path}: the first {len(questions)} rows can be read"), whole


def _check_hub_has(data_set: str) -> None:
    """DataError for a data set that the hub does not have. Without an answer it may still be in the library's cache."""
    name, _, _ = data_set.partition(":")
    with suppress(UnavailableError):
        if not is_on_hub("dataset", name):
            raise DataError(
                f"{name} is neither a file or folder (looked in {Path.cwd()}) nor a data set on the Hugging Face hub",
                hint="check data.path or the benchmark; for a private data set log in with `hf auth login`",
            )


def _within(seconds: float, questions: Iterator[Question]) -> Iterator[Question]:
    ends_at = time.monotonic() + seconds
    for question in questions:
        yield question
        if time.monotonic() > ends_at:
            return


def _check_rendering(questions: Sequence[Question], data: DataConfig, template: ChatTemplate | None) -> None:
    """The template renders one conversation of every sequence of roles."""
    if template is None:
        return
    conversations = (conversation_of(question, data) for question in questions)
    by_roles = {tuple(message["role"] for message in conversation): conversation for conversation in conversations}
    for conversation in by_roles.values():
        template.check(conversation)
