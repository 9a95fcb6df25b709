"""Every answer of one evaluation with its verdict, one JSON line each, and what it was drawn from. Knows no queue.

    evaluation.json       the weights' digest and the settings that make answers comparable
    generations.jsonl     one line an answer, in the order they were judged

An evaluation that was interrupted goes on from what is here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learner.grading.grading import Outcome
from services import durable
from services.errors import ConfigError
from services.run_folder import EvaluationFolder

Key = tuple[str, float, int, int]
"""(benchmark, temperature, problem, sample)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One judged answer."""

    benchmark: str
    temperature: float
    problem: int
    """Row in the benchmark, from 0."""
    sample: int
    """0 .. n-1."""
    outcome: Outcome
    question: str
    truth: str
    answer: str
    """What was judged, as found in the response."""
    response: str
    finish_reason: str
    response_tokens: int
    weight_version: int
    generator_id: str

    @property
    def key(self) -> Key:
        return self.benchmark, self.temperature, self.problem, self.sample


class Generations:
    """The answers in one folder."""

    def __init__(self, folder: Path, meta: Mapping[str, Any], *, replace: bool = False) -> None:
        """Opens the folder for answers drawn as `meta` says.

        Where it holds answers drawn otherwise (another model, another prompt), they go if `replace` is set, else
        ConfigError: two evaluations in one folder would be added up.
        """
        paths = EvaluationFolder(folder)
        self._path = paths.generations
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(paths.meta.read_text()) if paths.meta.exists() else None
        if before is not None and before != dict(meta):
            if not replace:
                differing = sorted(key for key in {*before, *meta} if before.get(key) != meta.get(key))
                raise ConfigError(
                    f"{folder} holds another evaluation: it differs in {', '.join(differing)}",
                    hint="name another folder, or restore what differs to go on with this one",
                )
            self._path.unlink(missing_ok=True)
        durable.write_file(paths.meta, json.dumps(dict(meta), indent=2) + "\n")
        self.known = {generation.key for generation in self.read()}

    def add(self, generations: Sequence[Generation]) -> None:
        """Keep these durably; those known already are not written again."""
        new = {generation.key: generation for generation in generations if generation.key not in self.known}
        if new:
            lines = [json.dumps(asdict(generation), ensure_ascii=False) for generation in new.values()]
            durable.append_line(self._path, "\n".join(lines))
            self.known |= new.keys()

    def read(self) -> Iterator[Generation]:
        """All answers so far; a line cut short by a crash is left out."""
        return read_generations(self._path)


def read_generations(path: Path) -> Iterator[Generation]:
    """The answers in a generations.jsonl, in its order."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            yield Generation(**(values | {"outcome": Outcome(values["outcome"])}))
