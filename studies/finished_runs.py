"""The numbers of a study's finished runs, a file each, and whether they are still what the study asks for.

The files are small and name no path outside the study, so they can be committed: a study goes on from them on another
machine, without the folders of the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.settings import Settings, flatten
from learner.data.dataset import read_questions
from learner.data.readers.places import is_local
from learner.data.readers.source import parse_source
from learner.evaluation.benchmarks import problems_digest, resolve_benchmarks
from learner.recipes import RECIPES
from services import durable
from services.errors import ConfigError

DECIDING = ("run.seed", "model.", "data.", "sampling.", "training.", "lora.", "evaluation.", "generator.dtype")
"""Settings, or sections of them, that decide what a run finds ..."""
PLACEMENT = {
    f"training.{key}"
    for key in (
        "device",
        "ranks",
        "nodes",
        "sharding",
        "gradient_checkpointing",
        "micro_batch_tokens",
        "optimizer_offload",
    )
} | {"model.path", "data.path", "evaluation.benchmarks"}
"""... but for these, which say where and how it is computed; what the problems are their digests say."""


class FinishedRun:
    """What is kept of one run."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.json"

    def write(
        self,
        settings: Settings,
        results: Mapping[str, Any],
        speed: Mapping[str, float],
        *,
        untrained: str,
        seconds: float,
        curve: Mapping[int, float] | None = None,
    ) -> None:
        """Keep a run's numbers.

        `untrained`: digest of the model that it began with; `seconds`: what it took; `curve`: version -> pass@1 in
        percent, if it was followed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "settings": _deciding(settings),
            "untrained": untrained,
            "results": results,
            "speed": speed,
            "seconds": round(seconds),
        }
        kept |= {"curve": curve} if curve else {}
        durable.write_file(self.path, json.dumps(kept, indent=1) + "\n")

    def read(self, settings: Settings) -> dict[str, Any] | None:
        """What was kept, by the names of `write`; None where the run has not finished.

        ConfigError where the study has changed since: its settings, its problems or the grader.
        """
        try:
            kept: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            before = kept["settings"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} cannot be read: {error}", hint="remove it to run that again") from error
        now = _deciding(settings)
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        differing += differs(kept["results"], settings)
        if differing:
            raise ConfigError(
                f"{self.path} holds a run that differs from this study in {', '.join(dict.fromkeys(differing))}",
                hint="restore what differs, or remove the file and the run's folder to run it again",
            )
        return kept


def _deciding(settings: Settings) -> dict[str, Any]:
    values = flatten(settings)
    chosen = {key: values[key] for key in values if key.startswith(DECIDING) and key not in PLACEMENT}
    known: dict[str, Any] = json.loads(json.dumps(chosen))  # as a file has them: tuples are lists
    return known


def differs(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """In what an evaluation's results differ from what the settings ask for now, as far as they say.

    Prompt, sampling, verifier, and the problems of the benchmarks that are files.
    """
    from learner.evaluation.eval_tasks import describe_settings
    from learner.evaluation.grader_version import grader_version

    now = describe_settings(settings.data, settings.sampling) | {"grader": grader_version()}
    found = [key for key, value in now.items() if results.get(key, value) != value]
    strict = "strict" if RECIPES[settings.training.recipe].strict_grading else None
    found += ["grading"] if results.get("grading") != strict else []
    for name, place, split in resolve_benchmarks(settings.evaluation.benchmarks):
        before = results.get("benchmarks", {}).get(name)
        if before is not None and is_local(parse_source(place).path):
            questions = read_questions(place, split=split, limit=settings.evaluation.limit)
            digest = problems_digest(
                (question.row, question.text, question.answer) for question in questions if question.answer
            )
            found += [f"benchmark {name}"] if digest != before["problems"] else []
    return found
