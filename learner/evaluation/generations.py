"""Stores the answers of one evaluation with their grades, and what they were sampled from.

    evaluation.json       digests of the weights and of each benchmark's problems and rendered prompts, stop tokens,
                          and the settings that make answers comparable
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
from services.durable import UNGUARDED, WriteGuard
from services.errors import ConfigError
from services.run_folder import EvaluationFolder

BENCHMARKS = "benchmarks"
"""Entry of an evaluation's description: name -> digests of a benchmark. A folder may hold more than are asked for."""
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

    def __init__(
        self,
        folder: EvaluationFolder,
        meta: Mapping[str, Any],
        *,
        replace: bool = False,
        guard: WriteGuard = UNGUARDED,
    ) -> None:
        """Open the folder for answers that were sampled as `meta` says.

        If it holds others (another model, another prompt, a changed problem), they are deleted with `replace`; else
        ConfigError, as the results would mix two evaluations. A benchmark that it does not hold yet is added.
        """
        self._path = folder.generations
        self._guard = guard
        folder.path.mkdir(parents=True, exist_ok=True)
        before = _read_meta(folder) if folder.meta.exists() else {}
        differing = ["evaluation.json, which cannot be read"] if before is None else _differing(before, meta)
        differing = differing if before != {} else []
        if differing and not replace:
            raise ConfigError(
                f"{folder.path} holds another evaluation: it differs in {', '.join(differing)}",
                hint="name another folder, or restore what differs to go on with this one",
            )
        benchmarks = {**({} if differing or not before else before.get(BENCHMARKS, {})), **meta.get(BENCHMARKS, {})}
        with guard.guard():
            if differing:
                self._path.unlink(missing_ok=True)
            durable.write_file(folder.meta, json.dumps({**meta, BENCHMARKS: benchmarks}, indent=2) + "\n")
        self.known = {generation.key for generation in self.read()}

    def add(self, generations: Sequence[Generation]) -> None:
        """Write the answers durably; those that are stored already are not written again."""
        new = {generation.key: generation for generation in generations if generation.key not in self.known}
        if new:
            lines = [json.dumps(asdict(generation), ensure_ascii=False) for generation in new.values()]
            with self._guard.guard():
                durable.append_line(self._path, "\n".join(lines))
            self.known |= new.keys()

    def read(self) -> Iterator[Generation]:
        """All answers so far, without a line that a crash cut short or that was damaged: it is sampled again."""
        return read_generations(self._path)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The entries of two descriptions that differ; of benchmarks those that both have."""
    known, asked = before.get(BENCHMARKS, {}), now.get(BENCHMARKS, {})
    keys = sorted(key for key in {*before, *now} - {BENCHMARKS} if before.get(key) != now.get(key))
    return keys + [f"benchmark {name}" for name, digest in asked.items() if known.get(name, digest) != digest]


def is_described_by(folder: EvaluationFolder, meta: Mapping[str, Any]) -> bool:
    """Whether the folder's answers were asked for as `meta` says; what it does not mention does not count."""
    before = _read_meta(folder)
    return before is not None and not _differing(
        {key: before[key] for key in before.keys() & {*meta, BENCHMARKS}}, meta
    )


def _read_meta(folder: EvaluationFolder) -> dict[str, Any] | None:
    """What evaluation.json says; None where it is not there or cannot be read."""
    try:
        meta = json.loads(folder.meta.read_bytes())
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def read_generations(path: Path) -> Iterator[Generation]:
    """The answers in a generations.jsonl, in its order."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                generation = Generation(**(values | {"outcome": Outcome(values["outcome"])}))
            except (ValueError, KeyError, TypeError):
                continue
            yield generation
