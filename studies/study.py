"""`sept study`: models times methods times seeds, each a run of its own through the real service, then tables and
verdicts.

Every run evaluates its last version with its own generators before it ends, so no engine starts twice. Finished runs
are skipped.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markdown import Markdown

from deploy.local.run import run_local
from deploy.operate.durations import in_words
from deploy.placement import visible_gpus
from learner.input_checks import check_inputs
from services.errors import ConfigError
from services.run_folder import EvaluationFolder, RunFolder
from services.weights.reader import WeightReader
from studies.cost import cost_of_study
from studies.finished_runs import FinishedRun, differs
from studies.report import ReportFiles, RunResult, curve_of, speed_of, write_report
from studies.study_file import BASELINE, TAU_EVAL, UNTRAINED, Cell, Study, cells


async def run_study(study: Study, console: Console) -> signal.Signals | None:
    """Run what is not finished, then write the report; returns the signal that stopped it, if one did."""
    study.study.dir.mkdir(parents=True, exist_ok=True)
    if study.study.prepare:
        _prepare(study, console)
    check_study(study)
    if visible_gpus():
        console.print(*cost_of_study(cells(study)), sep="\n", highlight=False, markup=False)
    results: list[RunResult] = []
    began_with: dict[str, str] = {}
    runs = cells(study)
    for number, cell in enumerate(runs):
        kept = FinishedRun(study.finished, cell.name)
        to_run = kept.read(cell.settings) is None
        if to_run:
            console.print(f"run {number + 1} of {len(runs)}: {cell.name}{_time_left(study, runs)}", highlight=False)
            stopped_by = await _run(cell, kept, console)
            if stopped_by is not None:
                console.print(
                    f"stopped: {_done(study, runs)} of {len(runs)} runs are finished; the same command goes on",
                    highlight=False,
                )
                return stopped_by
        results += _results_of(study, cell, began_with)
        if to_run and cell.leader == "learner":
            write_report(study, results)
    for path in write_report(study, results):
        console.print(str(path), highlight=False)
    report = ReportFiles(study.study.dir).text.read_text()
    console.print(Markdown(report) if console.is_terminal else report, highlight=False, markup=False, soft_wrap=True)
    console.print(f"the runs in a browser: sept page {study.study.dir}", highlight=False)
    return None


def check_study(study: Study) -> None:
    """Check the inputs of every run before the first one starts; those that runs share only once."""
    checked: list[object] = []
    for cell in cells(study):
        settings = cell.settings
        inputs = (cell.leader, settings.model, settings.data, settings.evaluation, settings.training.algorithm)
        if inputs not in checked:
            check_inputs(settings, leader=cell.leader)
            checked.append(inputs)


async def _run(cell: Cell, kept: FinishedRun, console: Console) -> signal.Signals | None:
    """Run one cell to its end and keep its numbers."""
    folder, evaluation = RunFolder(cell.settings.run.dir), _evaluation_folder(cell)
    started = time.monotonic()
    if not evaluation.results.exists():
        stopped_by = await run_local(cell.settings, Console(quiet=not console.is_terminal), leader=cell.leader)
        if stopped_by is not None:
            return stopped_by
    results = json.loads(evaluation.results.read_text())
    if differing := differs(results, cell.settings):
        raise ConfigError(
            f"{evaluation.results} holds results that differ from this study in {', '.join(differing)}",
            hint="restore what differs, or remove that run's folder to run it again",
        )
    rounds = list(folder.rounds())
    seconds = max(time.monotonic() - started, sum(line.round_s for line in rounds))  # rounds of earlier starts count
    untrained = WeightReader(folder.weights, folder.run_id).manifest(0).digest
    speed, curve = speed_of(rounds), curve_of(rounds)
    kept.write(cell.settings, results, speed, untrained=untrained, seconds=seconds, curve=curve)
    console.print(f"  {in_words(seconds)}", highlight=False)
    return None


def _results_of(study: Study, cell: Cell, began_with: dict[str, str]) -> list[RunResult]:
    """A finished run's; of a sweep those of the Baseline and, first, of the untrained model at TAU_EVAL.

    `began_with` holds the digest of each model's weights; ConfigError for a run that began with others.
    """
    finished = FinishedRun(study.finished, cell.name)
    kept = finished.read(cell.settings)
    assert kept is not None
    if began_with.setdefault(cell.model, kept["untrained"]) != kept["untrained"]:
        raise ConfigError(
            f"{finished.path} began with other weights than the study's runs before it",
            hint="set model.path to the same model for all of them, or remove the runs of the other",
        )
    curve = {int(version): value for version, value in kept.get("curve", {}).items()}
    found = RunResult(cell.model, cell.method, cell.settings.run.seed, kept["results"], kept["speed"], curve)
    if cell.method != BASELINE:
        return [found]
    untrained = [replace(found, method=UNTRAINED, at=TAU_EVAL)] if TAU_EVAL in study.study.sweep else []
    return [*untrained, found]


def _seconds(study: Study, runs: Sequence[Cell]) -> dict[str, float]:
    """Run -> what it took, of those that have finished."""
    kept = {cell.name: FinishedRun(study.finished, cell.name).read(cell.settings) for cell in runs}
    return {name: float(found["seconds"]) for name, found in kept.items() if found is not None}


def _done(study: Study, runs: Sequence[Cell]) -> int:
    return len(_seconds(study, runs))


def _time_left(study: Study, runs: Sequence[Cell]) -> str:
    """What the runs that are not finished will take, as those of the same method have, or else as all have."""
    took = _seconds(study, runs)
    if not took:
        return ""
    of_method: dict[str, list[float]] = {}
    for cell in runs:
        if cell.name in took:
            of_method.setdefault(cell.method, []).append(took[cell.name])
    mean = sum(took.values()) / len(took)
    left = sum(
        sum(known) / len(known) if (known := of_method.get(cell.method)) else mean
        for cell in runs
        if cell.name not in took
    )
    return f"; {len(took)} finished, about {in_words(left)} left"


def _evaluation_folder(cell: Cell) -> EvaluationFolder:
    settings = cell.settings
    if cell.leader == "evaluator":
        return EvaluationFolder(settings.run.dir)
    assert settings.training.rounds is not None
    return RunFolder(settings.run.dir).evaluation_of(settings.training.rounds)


def _prepare(study: Study, console: Console) -> None:
    from studies import addition

    known = {"addition": addition.noisy_example, "misled addition": addition.misled_example}
    for name, model in study.models.items():
        wanted = model.prepare or study.study.prepare
        if wanted not in known:
            raise ConfigError(f"prepare = {wanted!r} is not known", hint=f"known are {', '.join(known)}")
        settings = next(cell.settings for cell in cells(study) if cell.model == name)
        addition.prepare(settings, console.print, with_answers=True, example=known[wanted])
