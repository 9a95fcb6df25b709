"""Results of an evaluation: pass@k per temperature from its graded answers, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.evaluation.generations import Generation
from learner.evaluation.pass_at_k import PassCurve, PassTable, pass_table
from learner.grading.math_grading import Outcome
from services import durable
from services.contracts import EvaluationMetrics
from services.errors import DataError

MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Results:
    """pass@k of one model."""

    samples: int
    by_temperature: dict[float, PassTable]
    counts: dict[float, dict[str, list[int]]]
    """Correct answers of every problem, per temperature and benchmark; problems in their order."""
    outcomes: dict[float, dict[str, int]]
    """Answers per temperature and outcome: correct, wrong, no_answer, timeout, failed; and those cut short."""

    @property
    def best_temperature(self) -> float:
        """The temperature with the highest AVG, the lowest of equals; the paper evaluates its Baseline at this one."""
        return max(
            sorted(self.by_temperature), key=lambda temperature: self.by_temperature[temperature].mean.average.value
        )

    def metrics(self, weight_version: int) -> tuple[EvaluationMetrics, ...]:
        """One entry per temperature, for metrics.jsonl."""
        return tuple(
            EvaluationMetrics(
                weight_version=weight_version,
                temperature=temperature,
                samples=self.samples,
                pass_at_k={
                    name: {k: round(curve[k].value, 6) for k in reported_ks(self.samples)}
                    for name, curve in (table.benchmarks | {MEAN: table.mean}).items()
                },
                problems={name: curve.problems for name, curve in table.benchmarks.items()},
            )
            for temperature, table in self.by_temperature.items()
        )


def reported_ks(samples: int) -> list[int]:
    """The k in metrics.jsonl: 1, 2, 4 ... and n itself."""
    return sorted({1 << exponent for exponent in range(samples.bit_length())} | {samples})


def summarise(generations: Iterable[Generation], samples: int) -> Results:
    """pass@k of the answers. Those beyond `samples` per problem are ignored; DataError when some are missing."""
    graded: dict[float, dict[str, dict[int, list[bool]]]] = {}
    outcomes: dict[float, Counter[str]] = {}
    for generation in generations:
        if generation.sample >= samples:
            continue
        problems = graded.setdefault(generation.temperature, {}).setdefault(generation.benchmark, {})
        problems.setdefault(generation.problem, []).append(generation.outcome is Outcome.CORRECT)
        tally = outcomes.setdefault(generation.temperature, Counter())
        tally[generation.outcome] += 1
        tally["cut_short"] += generation.finish_reason == "length"
    _check_complete(graded, samples)
    counts = {
        temperature: {
            name: [sum(problems[number]) for number in sorted(problems)] for name, problems in benchmarks.items()
        }
        for temperature, benchmarks in sorted(graded.items())
    }
    tables = {temperature: pass_table(correct, samples) for temperature, correct in counts.items()}
    return Results(samples, tables, counts, {temperature: dict(outcomes[temperature]) for temperature in tables})


def _check_complete(counts: Mapping[float, Mapping[str, Mapping[int, list[bool]]]], samples: int) -> None:
    for temperature, benchmarks in counts.items():
        for name, problems in benchmarks.items():
            for problem, grades in problems.items():
                if len(grades) != samples:
                    raise DataError(
                        f"problem {problem} of {name} has {len(grades)} of {samples} answers at {temperature:g}",
                        hint="finish the evaluation first: the same command resumes it",
                    )


def as_json(results: Results, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json; `meta` says what was evaluated."""
    first = next(iter(results.by_temperature.values()))
    return {
        **meta,
        "samples": results.samples,
        "confidence": 0.95,
        "average_over_k": list(first.mean.average_ks),
        "best_temperature": results.best_temperature,
        "temperatures": {
            f"{temperature:g}": {
                "benchmarks": {
                    name: _curve(curve) | {"correct": results.counts[temperature][name]}
                    for name, curve in table.benchmarks.items()
                },
                MEAN: _curve(table.mean),
                "outcomes": results.outcomes[temperature],
            }
            for temperature, table in results.by_temperature.items()
        },
    }


def write_results(path: Path, results: Results, meta: Mapping[str, Any]) -> None:
    durable.write_file(path, json.dumps(as_json(results, meta), indent=2) + "\n")


def _curve(curve: PassCurve) -> dict[str, Any]:
    def interval(estimate: Any) -> dict[str, float]:
        return {name: round(getattr(estimate, name), 6) for name in ("value", "low", "high")}

    return {
        "problems": curve.problems,
        "pass_at_k": {str(k): interval(estimate) for k, estimate in curve.by_k.items()},
        "average": interval(curve.average),
    }
