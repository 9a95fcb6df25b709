"""`sept eval`: its settings, its tables, its figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.load_settings import load
from deploy.resolved_settings import write_resolved
from learner.evaluation.generations import Generation
from learner.evaluation.results import as_json, summarise
from learner.grading.math_grading import Outcome
from services.errors import ConfigError
from studies.evaluate import evaluation_settings, remarks, tables
from studies.figures import draw_pass_at_k


def results(samples: int = 4, temperatures: tuple[float, ...] = (0.5, 1.0)) -> dict[str, Any]:
    """At 0.5 every answer is right, at 1 every second."""
    generations = [
        Generation(
            benchmark=name,
            temperature=temperature,
            problem=problem,
            sample=sample,
            outcome=Outcome.CORRECT if temperature < 1 or sample % 2 else Outcome.NO_ANSWER,
            question="q",
            truth="1",
            answer="1",
            response="1",
            finish_reason="length",
            response_tokens=1,
            weight_version=0,
            generator_id="g",
        )
        for name in ("easy", "hard")
        for temperature in temperatures
        for problem in range(3)
        for sample in range(samples)
    ]
    return json.loads(json.dumps(as_json(summarise(generations, samples), {"model": "m"})))  # type: ignore[no-any-return]


def shown(found: dict[str, Any]) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        for table in tables(found):
            console.print(table)
    return capture.get()


def test_options_become_settings_that_parts_can_read_back(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text("{}")
    options = {"benchmarks": f"gsm8k,held={tmp_path}/held.jsonl", "temperatures": "0.2,1", "limit": 5, "samples": None}
    settings = evaluation_settings("org/model-1B", options, out=tmp_path / "out")
    write_resolved(settings, tmp_path / "out.toml")
    again = load(tmp_path / "out.toml").evaluation
    assert again == settings.evaluation
    assert again.temperatures == (0.2, 1.0)
    assert again.benchmarks == ("gsm8k", f"held={tmp_path}/held.jsonl")
    assert settings.model.path == "org/model-1B"


def test_the_output_is_named_after_the_model() -> None:
    assert evaluation_settings("org/model-1B", {}).run.dir == Path("runs/eval-model-1B")


def test_rounds_of_evaluation_without_benchmarks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.benchmarks names none"):
        load(None, ["evaluation.every_rounds=5"])


def test_the_sweep_names_the_best_temperature() -> None:
    found = results()
    assert found["best_temperature"] == 0.5
    text = shown(found)
    assert "0.5 (best)" in text
    assert "pass@4" in text
    assert "100-100" in text


def test_a_table_fits_a_terminal() -> None:
    assert "…" not in shown(results(samples=32))


def test_an_avg_over_fewer_k_than_the_papers_is_told() -> None:
    assert "the paper's AVG" in remarks(results(samples=4))
    assert "the paper's AVG" not in remarks(results(samples=32))
    assert "12 no answer" in remarks(results(samples=4))


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    assert draw_pass_at_k(results(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
