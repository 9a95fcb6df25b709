"""`sept study`: methods times seeds, each a run of its own through the real service, then tables and verdicts.

A study's file says what the runs have in common and what makes each method different:

    [study]      title, dir, seeds, sweep (temperatures of the Baseline), claims
    [common]     sections of settings, as in a run's file; [common.evaluation] names the benchmarks
    [methods.X]  sections that differ

Every run evaluates its last version with its own generators before it ends, so no engine starts twice. Finished runs
are skipped. The order is seed by seed: a study that is cut short has complete comparisons.
"""

from __future__ import annotations

import json
import signal
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.console import Console

from deploy.load_settings import from_values
from deploy.local.run import run_local
from deploy.settings import Settings
from learner.data.dataset import read_questions
from learner.data.readers.places import is_local
from learner.data.readers.source import parse_source
from learner.evaluation.benchmarks import problems_digest, resolve_benchmarks
from learner.input_checks import check_inputs
from services.config import Section
from services.errors import ConfigError
from services.run_folder import EvaluationFolder, RunFolder
from studies.report import ReportFiles, RunResult, write_report

BASELINE, UNTRAINED = "baseline", "untrained"
TAU_EVAL = 1.0
"""Temperature at which trained models are evaluated, and the untrained one as well as at its best."""
ONLY_LAST = 10**6
"""evaluation.every_rounds of a study's runs: more than they have, so that only the last version is evaluated."""


class Claim(Section):
    """A comparison of two methods by their AVG."""

    text: str
    """In words, as the paper says it."""
    better: str
    worse: str


class StudyConfig(Section):
    """[study]."""

    title: str
    dir: Path
    seeds: tuple[int, ...] = Field(min_length=1)
    sweep: tuple[float, ...] = ()
    """Temperatures of the untrained model, whose best is the Baseline; none leaves it out."""
    prepare: str = ""
    """"addition" makes the demo's model and data first, unless they are there."""
    claims: tuple[Claim, ...] = ()


class Method(Section):
    """A row of the table."""

    label: str
    sections: dict[str, dict[str, Any]]


class Study(Section):
    """A study's file."""

    study: StudyConfig
    common: dict[str, dict[str, Any]]
    methods: dict[str, Method]


def load_study(path: Path) -> Study:
    """Read and check the file; ConfigError names what is wrong with it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        methods = {
            name: {"label": sections.pop("label", name), "sections": sections}
            for name, sections in values.get("methods", {}).items()
        }
        study = Study.model_validate(values | {"methods": methods})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"study {path} cannot be read: {error}", hint="deploy/config holds examples") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where} in {path}: {first['msg']}", hint="deploy/config holds examples") from error
    known = {*study.methods, BASELINE, UNTRAINED}
    for claim in study.study.claims:
        if not {claim.better, claim.worse} <= known:
            raise ConfigError(
                f"claim {claim.text!r} compares methods that {path} lacks", hint=f"it has {sorted(known)}"
            )
    for _, settings in planned(study):
        if settings.training.rounds is None:
            raise ConfigError(f"{path} does not set common.training.rounds", hint="set it: it is the runs' budget")
    return study


def planned(study: Study) -> Iterator[tuple[str, Settings]]:
    """(method, settings) of every training run, seed by seed."""
    for seed in study.study.seeds:
        for name, method in study.methods.items():
            yield name, _settings(study, f"{name}-s{seed}", method.sections, seed, every_rounds=ONLY_LAST)


def baseline_of(study: Study) -> Settings:
    """The settings of the untrained model's sweep."""
    settings = _settings(study, BASELINE, {}, study.study.seeds[0], every_rounds=0)
    swept = settings.evaluation.model_copy(update={"temperatures": study.study.sweep})
    return settings.model_copy(update={"evaluation": swept})


def _settings(
    study: Study, folder: str, sections: dict[str, dict[str, Any]], seed: int, *, every_rounds: int
) -> Settings:
    merged = {section: dict(values) for section, values in study.common.items()}
    for section, values in sections.items():
        merged.setdefault(section, {}).update(values)
    merged.setdefault("run", {}).update(dir=study.study.dir / folder, seed=seed)
    merged.setdefault("evaluation", {}).update(every_rounds=every_rounds, temperatures=(TAU_EVAL,))
    merged.setdefault("services", {}).setdefault("port", 0)
    return from_values(merged, f"the study's {folder}")


async def run_study(study: Study, console: Console) -> signal.Signals | None:
    """Run what is not finished, then write the report; returns the signal that stopped it, if one did."""
    study.study.dir.mkdir(parents=True, exist_ok=True)
    if study.study.prepare:
        _prepare(study, console)
    check_study(study)
    results: list[RunResult] = []
    if study.study.sweep:
        stopped_by = await _run_one(BASELINE, baseline_of(study), results, console, leader="evaluator")
        if stopped_by is not None:
            return stopped_by
        if TAU_EVAL in study.study.sweep:
            results.insert(0, replace(results[0], method=UNTRAINED, at=TAU_EVAL))
    for name, settings in planned(study):
        stopped_by = await _run_one(name, settings, results, console)
        if stopped_by is not None:
            return stopped_by
        _report(study, results)
    for path in _report(study, results):
        console.print(str(path), highlight=False)
    console.print(ReportFiles(study.study.dir).text.read_text(), highlight=False, markup=False)
    return None


def check_study(study: Study) -> None:
    """Check the inputs of every run before the first one starts; those that runs share only once."""
    checked: list[object] = []
    runs = [(settings, "learner") for _, settings in planned(study)]
    if study.study.sweep:
        runs.append((baseline_of(study), "evaluator"))
    for settings, leader in runs:
        inputs = (leader, settings.model, settings.data, settings.evaluation, settings.training.algorithm)
        if inputs not in checked:
            check_inputs(settings, leader=leader)
            checked.append(inputs)


def _report(study: Study, results: list[RunResult]) -> list[Path]:
    untrained = {UNTRAINED: "untrained", BASELINE: "Baseline (untrained, best tau_eval)"}
    labels = untrained | {name: method.label for name, method in study.methods.items()}
    claims = [(claim.text, claim.better, claim.worse) for claim in study.study.claims]
    return write_report(study.study.dir, study.study.title, labels, claims, results)


async def _run_one(
    name: str, settings: Settings, results: list[RunResult], console: Console, *, leader: str = "learner"
) -> signal.Signals | None:
    folder = RunFolder(settings.run.dir)
    evaluation = _evaluation_folder(settings, leader)
    if not evaluation.results.exists():
        started = time.monotonic()
        quiet = Console(quiet=not console.is_terminal)
        stopped_by = await run_local(settings, quiet, leader=leader)
        if stopped_by is not None:
            return stopped_by
        console.print(f"{folder.path.name}: {time.monotonic() - started:.0f} s", highlight=False)
    found = json.loads(evaluation.results.read_text())
    check_results(found, settings, evaluation.results)
    results.append(RunResult(name, settings.run.seed, found, list(folder.rounds())))
    return None


def check_results(results: Mapping[str, Any], settings: Settings, path: Path) -> None:
    """ConfigError when results from an earlier start are of other problems, or of prompts that were made otherwise."""
    from learner.evaluation.eval_tasks import describe_settings

    now = describe_settings(settings.data, settings.sampling)
    differing = [key for key, value in now.items() if results.get(key, value) != value]
    for name, place, split in resolve_benchmarks(settings.evaluation.benchmarks):
        before = results.get("benchmarks", {}).get(name)
        if before is not None and is_local(parse_source(place).path):
            questions = read_questions(place, split=split, limit=settings.evaluation.limit)
            digest = problems_digest(
                (question.row, question.text, question.answer) for question in questions if question.answer
            )
            differing += [f"benchmark {name}"] if digest != before["problems"] else []
    if differing:
        raise ConfigError(
            f"{path} holds results that differ from this study in {', '.join(differing)}",
            hint="restore what differs, or remove that run's folder to run it again",
        )


def _evaluation_folder(settings: Settings, leader: str) -> EvaluationFolder:
    if leader == "evaluator":
        return EvaluationFolder(settings.run.dir)
    assert settings.training.rounds is not None
    return RunFolder(settings.run.dir).evaluation_of(settings.training.rounds)


def _prepare(study: Study, console: Console) -> None:
    if study.study.prepare != "addition":
        raise ConfigError(f"study.prepare = {study.study.prepare!r} is not known", hint='known is "addition"')
    from studies import addition

    addition.prepare(baseline_of(study), console.print, with_answers=True)
