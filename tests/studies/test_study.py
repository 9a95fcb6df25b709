"""`sept study`: what is checked first, what it says, and that it goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from learner.evaluation.benchmarks import problems_digest
from services.errors import ConfigError
from studies.finished_runs import FinishedRun
from studies.study import check_study, run_study
from studies.study_file import Study, cells, load_study
from tests.support import scripted_run, tiny_models
from tests.support.studies import FILE, study_file
from tests.support.tokenizers import save_byte_tokenizer

CONFIG = Path("deploy/config")
DEADLINE_S = 900.0
SHIPPED = Path("deploy/config/study-real-cpu.toml").read_text()


def whole_study(folder: Path, held_out: str = '{"question": "2+2?", "answer": "4"}') -> Study:
    """A study whose model, prompts and benchmark are there."""
    save_byte_tokenizer(tiny_models.save(folder / "model"))
    (folder / "prompts.jsonl").write_text('{"question": "1+1?"}\n')
    (folder / "held.jsonl").write_text(held_out + "\n")
    paths = f'[common.model]\npath = "{folder}/model"\n[common.data]\npath = "{folder}/prompts.jsonl"\n'
    text = (
        FILE.replace("held=held.jsonl", f"held={folder}/held.jsonl")
        .replace("runs/t", f"{folder}/study")
        .replace("[common.training]", f"{paths}[common.training]")
    )
    return load_study(study_file(folder, text))


def test_the_inputs_of_every_run_are_checked_before_the_first_starts(tmp_path: Path) -> None:
    study = whole_study(tmp_path)
    check_study(study)
    study.methods["b"].sections["data"] = {"chat_template": "{% if %}"}
    with pytest.raises(ConfigError, match="no Jinja template"):
        check_study(study)


def keep(study: Study, *names: str, untrained: str = "d") -> None:
    """Numbers of runs that finished elsewhere."""
    curve = {"pass_at_k": {"1": {"value": 0.5}}, "average": {"value": 0.5}}
    for cell in cells(study):
        if cell.name in names:
            at = {"mean": curve, "benchmarks": {"held": {"correct": [2]}}, "outcomes": {"correct": 2, "wrong": 2}}
            results = {
                "samples": 4,
                "best_temperature": 0.2 if cell.method == "baseline" else 1.0,
                "temperatures": {"0.2": at, "1": at},
                "benchmarks": {"held": {"problems": problems_digest([(0, "2+2?", "4")])}},
            }
            finished = FinishedRun(study.finished, cell.name)
            finished.write(cell.settings, results, {}, untrained=untrained, seconds=60)


def test_a_study_whose_runs_finished_elsewhere_only_reports(tmp_path: Path) -> None:
    study, said = whole_study(tmp_path), StringIO()
    keep(study, *(cell.name for cell in cells(study)))
    assert asyncio.run(run_study(study, Console(file=said, width=20))) is None
    assert "run 1 of" not in said.getvalue()
    assert "| untrained | 1 | 1 | 50.0 |" in said.getvalue()
    assert [path.name for path in sorted((tmp_path / "study").iterdir())] == [
        "finished",
        "report.json",
        "report.md",
        "report.png",
    ]


@pytest.mark.parametrize(("gpus", "told"), [("0,1", True), ("", False)])
def test_on_gpus_the_cost_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, told: bool) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    study, said = whole_study(tmp_path), StringIO()
    keep(study, *(cell.name for cell in cells(study)))
    asyncio.run(run_study(study, Console(file=said, width=200)))
    assert said.getvalue().startswith("cost: about 0 GPU-hours") == told


def test_runs_of_another_model_are_not_put_into_one_table(tmp_path: Path) -> None:
    study = whole_study(tmp_path)
    keep(study, *(cell.name for cell in cells(study)))
    keep(study, "a-s1", untrained="of another model")
    with pytest.raises(ConfigError, match=r"a-s1\.json began with other weights"):
        asyncio.run(run_study(study, Console(quiet=True)))


def test_results_of_an_earlier_start_under_another_prompt_are_refused(tmp_path: Path) -> None:
    study, said = whole_study(tmp_path), StringIO()
    keep(study, *(cell.name for cell in cells(study)[:-1]))
    evaluation = tmp_path / "study" / "b-s1" / "evaluations" / "v000003"
    evaluation.mkdir(parents=True)
    (evaluation / "results.json").write_text(json.dumps({"system_prompt": "Think."}))
    with pytest.raises(ConfigError, match="differ from this study in system_prompt"):
        asyncio.run(run_study(study, Console(file=said, width=200)))
    assert "run 5 of 5: b-s1; 4 finished, about 1 min left" in said.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_the_study_of_a_real_model_starts_every_cell_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The shipped file, on a model of 0.1 M parameters whose generators answer by script, two rounds a cell."""
    scripted_run.write(tmp_path)
    for name in ("prompts", "held-out"):
        rows = [
            {"question": f"{number:04d}", "answer": str(number)} for number in range(6 if name == "held-out" else 16)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shipped = SHIPPED
    places = {
        "docs/results/real-cpu": f"{tmp_path}/kept",
        "runs/study-real-cpu": f"{tmp_path}/study",
        ".cache/word-problems": str(tmp_path),
    }
    for place, here in places.items():
        shipped = shipped.replace(place, here)
    (tmp_path / "study.toml").write_text(shipped)
    sets = {
        "model.path": tmp_path / "model",
        "data.chat_template": "none",
        "data.question_suffix": "",
        "sampling.max_response_tokens": 16,
        "training.rounds": 2,
        "training.prompts_per_round": 8,
        "generator.engine": "scripted",
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    names = [cell.name for cell in cells(load_study(tmp_path / "study.toml"))]

    process = await scripted_run.sept("study", tmp_path / "study.toml", *words)
    await until(lambda: (tmp_path / "study" / "sept-s0" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    assert await scripted_run.finish(process) == 128 + signal.SIGTERM
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert "baseline.json" in before
    assert len(before) < len(names)

    process = await scripted_run.sept("study", tmp_path / "study.toml", *words)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert sorted(after) == sorted(f"{name}.json" for name in names)
    assert {name: after[name] for name in before} == before, "a finished run was run again"
    report = (tmp_path / "study" / "report.md").read_text()
    assert all(f"| {label} |" in report for label in ("SePT", "SePT (offline)", "Coupled", "EM-FT"))
    assert report.count("**undecided**") + report.count("**holds**") + report.count("**does not hold**") == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_the_study_of_signals_starts_every_cell_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The shipped methods on the model of 0.1 M parameters, two rounds a cell."""
    scripted_run.write(tmp_path)
    for name, count in (("held-out", 6), ("prompts", 16)):
        rows = [{"question": f"{number:04d}", "answer": str(number)} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shipped = (CONFIG / "study-signals.toml").read_text()
    places = {
        "runs/study-signals": f"{tmp_path}/study",
        ".cache/study/misled-model": f"{tmp_path}/model",
        ".cache/study": str(tmp_path),
        ".cache/demo": str(tmp_path),
        'prepare = "addition"': "",
        "every_rounds = 10\nclaims": "every_rounds = 1\nclaims",
    }
    for before, after in places.items():
        assert before in shipped
        shipped = shipped.replace(before, after)
    (tmp_path / "study-signals.toml").write_text(shipped)
    (tmp_path / "short.toml").write_text((CONFIG / "study-signals-short.toml").read_text())
    sets = {
        "sampling.max_response_tokens": 16,
        "sampling.rollouts_per_prompt": 4,
        "training.rounds": 2,
        "training.prompts_per_round": 4,
        "generator.engine": "scripted",
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    names = [cell.name for cell in cells(load_study(tmp_path / "short.toml"))]
    assert len(names) == 14

    process = await scripted_run.sept("study", tmp_path / "short.toml", *words)
    await until(lambda: (tmp_path / "study" / "addition-sept-s0" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    assert await scripted_run.finish(process) == 128 + signal.SIGTERM
    assert [path.stem for path in (tmp_path / "study" / "finished").iterdir()] == ["addition-baseline"]

    process = await scripted_run.sept("study", tmp_path / "short.toml", *words)
    assert await asyncio.wait_for(process.wait(), 3 * DEADLINE_S) == 0
    assert sorted(path.stem for path in (tmp_path / "study" / "finished").iterdir()) == sorted(names)
    report = (tmp_path / "study" / "report.md").read_text()
    assert all(
        f"| {label} |" in report for label in ("SePT", "majority vote", "RENT", "power sampling", "wrong reward")
    )
    assert "version of the peak" in report


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that a process brings about."""
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.2)
