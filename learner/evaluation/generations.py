"""Stores the answers of one evaluation with their grades, and what they were sampled from.

    evaluation.json       digest of the weights, and the settings that make answers comparable
    generations.jsonl     one line per answer, in the order of grading

An evaluation that was interrupted resumes from these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learner.grading.math_grading import Outcome
from services import durable
from services.errors import ConfigError
from services.run_folder import EvaluationFolder

Key = tuple[str, float, int, int]
"""(benchmark, temperature, problem, sample)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One graded answer."""

    benchmark: str
    temperature: float
    problem: int
    """Number of its row in the benchmark, from 0."""
    sample: int
    """0 .. n-1."""
    outcome: Outcome
    question: str
    truth: str
    answer: str
    """What was graded, as found in the response."""
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

    def __init__(self, folder: EvaluationFolder, meta: Mapping[str, Any], *, replace: bool = False) -> None:
        """Open the folder for answers that were sampled as `meta` says.

        If it holds others (another model, another prompt), they are deleted with `replace`; else ConfigError, as the
        results would mix two evaluations.
        """
        self._path = folder.generations
        folder.path.mkdir(parents=True, exist_ok=True)
        before = json.loads(folder.meta.read_text()) if folder.meta.exists() else None
        if before is not None and before != dict(meta):
            if not replace:
                differing = sorted(key for key in {*before, *meta} if before.get(key) != meta.get(key))
                raise ConfigError(
                    f"{folder.path} holds another evaluation: it differs in {', '.join(differing)}",
                    hint="name another folder, or restore what differs to go on with this one",
                )
            self._path.unlink(missing_ok=True)
        durable.write_file(folder.meta, json.dumps(dict(meta), indent=2) + "\n")
        self.known = {generation.key for generation in self.read()}

    def add(self, generations: Sequence[Generation]) -> None:
        """Write the answers durably; those that are stored already are not written again."""
        new = {generation.key: generation for generation in generations if generation.key not in self.known}
        if new:
            lines = [json.dumps(asdict(generation), ensure_ascii=False) for generation in new.values()]
            durable.append_line(self._path, "\n".join(lines))
            self.known |= new.keys()

    def read(self) -> Iterator[Generation]:
        """All answers so far, without a line that a crash cut short."""
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
