"""A study's file: what its runs have in common and what makes each of them different.

    [study]      title, dir, seeds, sweep (temperatures of the Baseline), keep, claims
    [common]     sections of settings, as in a run's file; [common.evaluation] names the benchmarks
    [models.X]   optional: label, config (a run's file), published results, sections that differ
    [methods.X]  label, seeds (default: the study's), sections that differ

`include`, before the first table, names another study's file, of which this one changes what it says.
Every model meets every method. Later tables win: a model's config, [common], [models.X], [methods.X].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from deploy.load_settings import from_values, values_of_file, values_of_sets
from deploy.settings import Settings
from services.config import Section
from services.errors import ConfigError

BASELINE, UNTRAINED = "baseline", "untrained"
TAU_EVAL = 1.0
"""Temperature at which trained models are evaluated, and the untrained one as well as at its best."""
ONLY_LAST = 10**6
"""evaluation.every_rounds of a study's runs: more than they have, so that only the last version is evaluated."""

Sections = dict[str, dict[str, Any]]


class Claim(Section):
    """A comparison of two methods by their AVG, for every model."""

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
    """"addition" makes the demo's model and data first, unless they are there; "misled addition" one whose most
    frequent answer is often wrong."""
    models: tuple[str, ...] = ()
    """Of [models.X] those that are trained; default: all."""
    every_rounds: int = Field(default=0, ge=0)
    """Rounds between two evaluations of a run, for curves; 0: its last version alone is evaluated."""
    keep: Path | None = None
    """Folder with the numbers of finished runs, a file each, which are not run again; default: `finished` in `dir`."""
    claims: tuple[Claim, ...] = ()


class Model(Section):
    """One of the models that are compared."""

    label: str = ""
    config: Path | None = None
    """File of a run, beside the study's file."""
    prepare: str = ""
    """As in [study], for this model."""
    published: dict[str, float] = Field(default_factory=dict)
    """Method -> AVG in percent, as others have measured it."""
    sections: Sections = Field(default_factory=dict)


class Method(Section):
    """One of the ways of training that are compared."""

    label: str
    seeds: tuple[int, ...] | None = None
    sections: Sections


class Study(Section):
    """A study's file, read."""

    study: StudyConfig
    common: Sections
    models: dict[str, Model]
    methods: dict[str, Method]

    @property
    def finished(self) -> Path:
        """The folder with the numbers of finished runs."""
        return self.study.keep or self.study.dir / "finished"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study."""

    model: str
    """Empty in a study of one model."""
    method: str
    settings: Settings
    leader: Literal["learner", "evaluator"] = "learner"

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.settings.run.dir.name


def load_study(path: Path, sets: Sequence[str] = ()) -> Study:
    """Read and check the file; `sets`, "section.key=value", are put into [common]. ConfigError names what is wrong."""
    try:
        values: dict[str, Any] = values_of_file(path)
        values["common"] = _merged(values.get("common", {}), values_of_sets(sets))
        values["models"] = {
            name: _named(name, model, path.parent, "config", "published", "prepare")
            for name, model in values.get("models", {"": {}}).items()
        }
        values["methods"] = {
            name: _named(name, method, path.parent, "seeds") for name, method in values.get("methods", {}).items()
        }
        study = _with_chosen_models(Study.model_validate(values))
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
    for name, model in study.models.items():
        if not model.published.keys() <= known:
            raise ConfigError(
                f"models.{name}.published in {path} names methods that it lacks", hint=f"it has {sorted(known)}"
            )
    for cell in trainings(study):
        if cell.settings.training.rounds is None:
            raise ConfigError(f"{path} does not set common.training.rounds", hint="set it: it is the runs' budget")
    return study


def _with_chosen_models(study: Study) -> Study:
    chosen = study.study.models or tuple(study.models)
    if unknown := sorted(set(chosen) - set(study.models)):
        raise ConfigError(f"study.models names {unknown}, which it lacks", hint=f"it has {sorted(study.models)}")
    return study.model_copy(update={"models": {name: study.models[name] for name in chosen}})


def _named(name: str, values: Mapping[str, Any], folder: Path, *own: str) -> dict[str, Any]:
    """A [models.X] or [methods.X], with what is not its `own` as sections."""
    known = {key: values[key] for key in ("label", *own) if key in values}
    if "config" in known:
        known["config"] = folder / known["config"]
    return {"label": name} | known | {"sections": {key: value for key, value in values.items() if key not in known}}


def cells(study: Study) -> list[Cell]:
    """All runs, model by model and then seed by seed: a study that is cut short has complete comparisons."""
    baselines = {cell.model: cell for cell in sweeps(study)}
    found = []
    for name in study.models:
        found += [baselines[name]] if name in baselines else []
        found += [cell for cell in trainings(study) if cell.model == name]
    return found


def trainings(study: Study) -> Iterator[Cell]:
    """Every training run."""
    for model in study.models:
        for seed in study.study.seeds:
            for name, method in study.methods.items():
                if seed in (method.seeds or study.study.seeds):
                    run = f"{name}-s{seed}"
                    every = study.study.every_rounds or ONLY_LAST
                    settings = _settings(study, model, run, method.sections, seed, every_rounds=every)
                    yield Cell(model, name, settings)


def sweeps(study: Study) -> Iterator[Cell]:
    """The evaluation of every untrained model at the temperatures of the sweep."""
    for model in study.models if study.study.sweep else ():
        settings = _settings(study, model, BASELINE, {}, study.study.seeds[0], every_rounds=0)
        swept = settings.evaluation.model_copy(update={"temperatures": study.study.sweep})
        yield Cell(model, BASELINE, settings.model_copy(update={"evaluation": swept}), "evaluator")


def _settings(study: Study, model: str, run: str, sections: Sections, seed: int, *, every_rounds: int) -> Settings:
    compared = study.models[model]
    base = values_of_file(compared.config) if compared.config is not None else {}
    merged = _merged(base, study.common, compared.sections, sections)
    folder = f"{model}-{run}" if model else run
    merged.setdefault("run", {}).update(dir=study.study.dir / folder, seed=seed)
    merged.setdefault("evaluation", {}).update(every_rounds=every_rounds, temperatures=(TAU_EVAL,))
    merged.setdefault("services", {}).setdefault("port", 0)
    return from_values(merged, f"the study's {folder}")


def _merged(*layers: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Sections with the keys of all layers; later ones win."""
    merged: Sections = {}
    for layer in layers:
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
    return merged
