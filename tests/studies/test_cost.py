"""Estimates of cost: which way they go, and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.memory.model_shape import ModelShape, shape_of_config
from studies.cost import cost_lines, cost_of_cell
from studies.study_file import Cell, cells, load_study
from tests.support.model_configs import CONFIGS


def shape() -> ModelShape:
    found = shape_of_config(CONFIGS["Qwen2.5-Math-7B"])
    assert found is not None
    return found


def cell(method: str, *sets: str) -> Cell:
    runs = cells(load_study(Path("deploy/config/study-paper.toml"), sets))
    return next(one for one in runs if (one.model, one.method) == ("qwen2.5-math-7b", method))


def test_training_7b_as_the_paper_does_takes_a_day_or_less_of_eight_gpus() -> None:
    cost = cost_of_cell(cell("sept"), shape())
    assert cost.gpus == 8
    assert 10 < cost.gpu_hours < 200
    assert cost.wall_s == cost.sampling_s + cost.training_s + cost.evaluation_s


@pytest.mark.parametrize(
    ("method", "at_least", "at_most"), [("grpo", 6, 12), ("offline", 0.6, 1.0), ("coupled", 1, 1), ("baseline", 0.2, 1)]
)
def test_methods_cost_what_they_sample_and_train(method: str, at_least: float, at_most: float) -> None:
    sept, other = (cost_of_cell(cell(name), shape()).gpu_hours for name in ("sept", method))
    assert at_least * sept <= other <= at_most * sept


def test_one_round_ahead_costs_less_time() -> None:
    strict, ahead = (cost_of_cell(cell("sept", f"training.max_staleness={k}"), shape()).wall_s for k in (0, 1))
    assert ahead < strict


def test_an_untrained_model_is_swept_by_its_generators_alone() -> None:
    cost = cost_of_cell(cell("baseline"), shape())
    assert cost.gpus == cell("baseline").settings.generator.count
    assert cost.wall_s == cost.evaluation_s


def test_lines_name_every_run_and_the_sum() -> None:
    runs = [cell("sept"), cell("grpo")]
    lines = cost_lines(runs, {runs[0].settings.model.path: shape()})
    total = sum(cost_of_cell(run, shape()).gpu_hours for run in runs)
    assert f"about {total:,.0f} GPU-hours" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == [run.name for run in runs]
    assert cost_lines(runs, {"a/b": None}) == ["cost: not known, as the sizes of a/b are not"]
