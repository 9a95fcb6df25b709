"""Studies: what their files say, intervals over seeds, and verdicts that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.errors import ConfigError
from studies.report import RunResult, judge_claim, over_seeds, write_report
from studies.study import baseline_of, load_study, planned

CONFIG = Path("deploy/config")
FILE = """
[study]
title = "t"
dir = "runs/t"
seeds = [0, 1]
sweep = [0.2, 1.0]
claims = [{ text = "a beats b", better = "a", worse = "b" }]
[common.training]
rounds = 3
[common.evaluation]
benchmarks = ["held=held.jsonl"]
[methods.a]
label = "A"
[methods.b.training]
tau_t = 0.6
"""


def study_file(path: Path, text: str = FILE) -> Path:
    (path / "study.toml").write_text(text)
    return path / "study.toml"


def run_result(method: str, seed: int, average: float) -> RunResult:
    curve: dict[str, Any] = {
        "pass_at_k": {str(k): {"value": average} for k in (1, 8, 32)},
        "average": {"value": average},
    }
    return RunResult(method, seed, {"best_temperature": 1.0, "samples": 32, "temperatures": {"1": {"mean": curve}}}, [])


@pytest.mark.parametrize("name", ["study-addition", "study-staleness"])
def test_the_studies_that_come_with_the_project_are_whole(name: str) -> None:
    study = load_study(CONFIG / f"{name}.toml")
    runs = list(planned(study))
    assert len(runs) == len(study.methods) * len(study.study.seeds)
    assert len({settings.run.dir for _, settings in runs}) == len(runs)
    rollouts = {
        method: s.training.prompts_per_round * s.sampling.rollouts_per_prompt * (s.training.rounds or 0)
        for method, s in runs
    }
    longer = rollouts.pop("grpo_long", None)
    (budget,) = set(rollouts.values())  # every method has the same one, but for that whose label says otherwise
    assert longer in (None, 10 * budget)


def test_a_method_differs_from_the_others_in_its_sections_only(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    runs = [(name, s.run.seed, s.training.tau_t, s.training.rounds) for name, s in planned(study)]
    assert runs == [("a", 0, 1.0, 3), ("b", 0, 0.6, 3), ("a", 1, 1.0, 3), ("b", 1, 0.6, 3)]
    assert baseline_of(study).evaluation.temperatures == (0.2, 1.0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('worse = "b"', 'worse = "c"', "compares methods"),
        ("rounds = 3", "rounds = 0", r"training\.rounds"),
        ("rounds = 3", "", r"does not set common\.training\.rounds"),
        ("tau_t", "tau_tt", r"training\.tau_tt"),
        ("seeds = [0, 1]", "seeds = []", r"study\.seeds"),
    ],
)
def test_a_file_that_makes_no_study_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(study_file(tmp_path, FILE.replace(before, after)))


def test_the_interval_over_seeds_is_students() -> None:
    interval = over_seeds([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - interval.mean == pytest.approx(4.303 / 3**0.5)
    assert over_seeds([5.0]).high == float("inf")


@pytest.mark.parametrize(
    ("better", "verdict"),
    [((95.0, 96.0, 95.5), "holds"), ((80.0, 81.0, 80.5), "does not hold"), ((85.0, 97.0, 90.0), "undecided")],
)
def test_verdicts_follow_from_the_interval_of_the_difference(better: tuple[float, ...], verdict: str) -> None:
    worse = {0: 90.0, 1: 90.5, 2: 90.2}
    assert judge_claim("x", dict(enumerate(better)), worse).verdict == verdict


def test_one_seed_decides_nothing() -> None:
    assert judge_claim("x", {0: 99.0}, {0: 1.0}).verdict == "undecided"


def test_the_untrained_model_is_compared_with_every_seed() -> None:
    assert judge_claim("x", {0: 95.0, 1: 96.0, 2: 95.5}, {0: 90.0}).difference.mean == pytest.approx(5.5)
    assert judge_claim("x", {0: 90.0}, {0: 95.0, 1: 96.0, 2: 95.5}).difference.mean == pytest.approx(-5.5)


def test_the_report_has_table_verdicts_and_figure(tmp_path: Path) -> None:
    results = [run_result("a", seed, 0.95 + seed / 1000) for seed in range(3)] + [
        run_result("b", seed, 0.90 + seed / 1000) for seed in range(3)
    ]
    paths = write_report(tmp_path, "Title", {"a": "A", "b": "B"}, [("a beats b", "a", "b")], results)
    assert [path.name for path in paths] == ["report.md", "report.json", "report.png"]
    text = paths[0].read_text()
    assert "| A | 1 | 3 | 95.1 ± 0.2 |" in text
    assert "| a beats b | +5.0 |" in text
    assert "**holds**" in text
    assert json.loads(paths[1].read_text())["claims"][0]["verdict"] == "holds"
    assert paths[2].stat().st_size > 1000
