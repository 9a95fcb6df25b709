"""A study's file: which runs it makes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.errors import ConfigError
from studies.study_file import cells, load_study
from tests.support.studies import FILE, study_file

CONFIG = Path("deploy/config")


@pytest.mark.parametrize("name", ["addition", "staleness", "real-cpu", "paper", "signals", "signals-short"])
def test_the_studies_that_come_with_the_project_are_whole(name: str) -> None:
    study = load_study(CONFIG / f"study-{name}.toml")
    runs = [cell for cell in cells(study) if cell.leader == "learner"]
    assert len({cell.settings.run.dir for cell in runs}) == len(runs)
    rollouts = {
        cell.method: s.training.prompts_per_round * s.sampling.rollouts_per_prompt * (s.training.rounds or 0)
        for cell in runs
        for s in [cell.settings]
    }
    unlike = {"grpo_long"} | ({"grpo"} if name == "paper" else set())  # as their labels, or the paper, say
    (budget,) = {count for method, count in rollouts.items() if method not in unlike}
    assert rollouts.get("grpo_long", 10 * budget) == 10 * budget


def test_the_papers_study_has_every_model_with_every_method() -> None:
    study = load_study(CONFIG / "study-paper.toml")
    runs = cells(study)
    assert len(study.models) == len(study.methods) == 5
    trained = [(cell.model, cell.method) for cell in runs if cell.leader == "learner"]
    assert trained == [(model, method) for model in study.models for method in study.methods]
    of_models = {cell.model: cell.settings.model.path.rpartition("/")[2].lower() for cell in runs}
    assert all(model == path for model, path in of_models.items())
    starts = {(cell.model, cell.method): cell.settings.sampling.tau_start for cell in runs}
    assert starts["qwen2.5-math-7b", "offline"] == 0.6
    assert starts["llama-3.1-8b-instruct", "offline"] == 0.9
    assert starts["llama-3.1-8b-instruct", "grpo"] == 1.0
    offline = next(cell.settings.training for cell in runs if cell.method == "offline")
    assert (offline.learning_rate, offline.steps_per_round, offline.max_staleness) == (1e-5, 1, 0)
    assert {cell.settings.evaluation.samples for cell in runs} == {32}
    assert all(len(cell.settings.evaluation.benchmarks) == 6 for cell in runs)


def test_the_study_of_signals_has_13_methods_two_models_and_a_short_form_that_is_part_of_it() -> None:
    whole, short = (cells(load_study(CONFIG / f"study-{name}.toml")) for name in ("signals", "signals-short"))
    runs = [cell for cell in whole if cell.leader == "learner"]
    assert len(runs) == 13 * 2 * 3
    steps = {(cell.settings.training.rounds or 0) * cell.settings.training.steps_per_round for cell in runs}
    assert len(steps) == 1, "the same optimizer steps"
    assert [cell.name for cell in short] == [cell.name for cell in whole][:14]
    assert [cell.settings for cell in short] == [cell.settings for cell in whole][:14]


def test_a_model_that_a_study_lacks_cannot_be_chosen(tmp_path: Path) -> None:
    text = FILE.replace("seeds = [0, 1]", 'seeds = [0, 1]\nmodels = ["other"]')
    with pytest.raises(ConfigError, match=r"study\.models names \['other'\]"):
        load_study(study_file(tmp_path, text))


def test_a_method_differs_from_the_others_in_its_sections_only(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    runs = [(c.name, c.settings.run.seed, c.settings.training.tau_t, c.settings.training.rounds) for c in cells(study)]
    assert runs == [
        ("baseline", 0, 1.0, 3),
        ("a-s0", 0, 1.0, 3),
        ("b-s0", 0, 0.6, 3),
        ("a-s1", 1, 1.0, 3),
        ("b-s1", 1, 0.6, 3),
    ]
    assert cells(study)[0].settings.evaluation.temperatures == (0.2, 1.0)


def test_a_method_may_have_fewer_seeds_than_the_study(tmp_path: Path) -> None:
    study = load_study(
        study_file(tmp_path, FILE.replace("[methods.b.training]", "[methods.b]\nseeds = [1]\n[methods.b.training]"))
    )
    assert [cell.name for cell in cells(study)] == ["baseline", "a-s0", "a-s1", "b-s1"]


def test_what_a_models_own_file_says_counts_where_the_study_does_not(tmp_path: Path) -> None:
    (tmp_path / "big.toml").write_text('[run]\ndir = "x"\n[model]\npath = "big"\n[training]\nrounds = 9\nepochs = 2\n')
    models = '[models.big]\nconfig = "big.toml"\n[models.small.model]\npath = "small"\n[methods.a]'
    study = load_study(study_file(tmp_path, FILE.replace("[methods.a]", models)))
    found = {cell.name: cell.settings for cell in cells(study)}
    assert list(found)[:3] == ["big-baseline", "big-a-s0", "big-b-s0"]
    assert len(found) == 10
    big, small = found["big-a-s0"], found["small-a-s0"]
    assert (big.model.path, big.training.rounds, big.training.epochs) == ("big", 3, 2.0)
    assert (small.model.path, small.training.epochs) == ("small", 3.0)
    assert big.run.dir == Path("runs/t/big-a-s0")


def test_set_changes_what_the_runs_have_in_common(tmp_path: Path) -> None:
    sets = ["training.rounds=2", "training.tau_t=0.5"]
    study = load_study(study_file(tmp_path), sets)
    assert [(s.training.rounds, s.training.tau_t) for s in (cell.settings for cell in cells(study))][:3] == [
        (2, 0.5),
        (2, 0.5),
        (2, 0.6),
    ]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('worse = "b"', 'worse = "c"', "compares methods"),
        ("[methods.a]", "[models.m]\npublished = { c = 1.0 }\n[methods.a]", r"models\.m\.published .* names methods"),
        ("[methods.a]", '[models.m]\nconfig = "gone.toml"\n[methods.a]', r"gone\.toml does not exist"),
        ("rounds = 3", "rounds = 0", r"training\.rounds"),
        ("rounds = 3", "", r"does not set common\.training\.rounds"),
        ("tau_t", "tau_tt", r"training\.tau_tt"),
        ("seeds = [0, 1]", "seeds = []", r"study\.seeds"),
    ],
)
def test_a_file_that_makes_no_study_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(study_file(tmp_path, FILE.replace(before, after)))
