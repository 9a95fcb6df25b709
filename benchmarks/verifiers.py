"""One set of answers graded by both verifiers: what insisting on a box costs, in points of pass@1.

    python -m benchmarks.verifiers runs/eval-MODEL/generations.jsonl [--temperature 1]

The default verifier judges answers without a box, too; that of `training.recipe = "paper"` the last box alone. The
interval is over problems, with both grades of an answer paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.evaluation.generations import Generation, read_generations
from learner.grading.math_grading import Grade
from learner.grading.pool import GraderPool
from studies.intervals import Counts, Interval, Scored, over_problems


@dataclass(frozen=True, slots=True)
class Compared:
    """pass@1 in percent, mean of the benchmarks."""

    answers: int
    tolerant: Interval
    strict: Interval
    difference: Interval
    """tolerant - strict."""
    unboxed_correct: int
    """Answers that only the tolerant verifier takes for correct."""


def compare(generations: Sequence[Generation]) -> Compared:
    """Grade all of them twice; every problem must have as many answers as every other."""
    verdicts = [[grade.correct for grade in grades] for grades in grade_by_both(generations)]
    samples = 1 + max(one.sample for one in generations)
    ours, theirs = (Scored(0, samples, 0.0, _counts(generations, correct)) for correct in verdicts)
    return Compared(
        len(generations),
        over_problems([ours], [1]),
        over_problems([theirs], [1]),
        over_problems([ours], [1], minus=[theirs]),
        sum(one and not other for one, other in zip(*verdicts, strict=True)),
    )


def grade_by_both(generations: Sequence[Generation]) -> tuple[list[Grade], list[Grade]]:
    """(by the default verifier, by the strict one), one grade an answer."""
    pairs = [(one.response, one.truth) for one in generations]
    with GraderPool(1) as tolerant, GraderPool(1, strict=True) as strict:
        return tolerant.grade_many(pairs), strict.grade_many(pairs)


def _counts(generations: Sequence[Generation], correct: Sequence[bool]) -> Counts:
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for generation, is_correct in zip(generations, correct, strict=True):
        found[generation.benchmark][generation.problem] += is_correct
    return {name: [problems[number] for number in sorted(problems)] for name, problems in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("generations", type=Path, help="generations.jsonl of an evaluation")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    chosen = [one for one in read_generations(arguments.generations) if one.temperature == arguments.temperature]
    if not chosen:
        parser.error(f"{arguments.generations} has no answers at temperature {arguments.temperature:g}")
    found = compare(chosen)
    print(f"{found.answers} answers at temperature {arguments.temperature:g}, pass@1 in percent, 95 % over problems")
    print(f"tolerant {found.tolerant}, strict {found.strict}, difference {found.difference}")
    print(f"correct without the right answer in the last box: {found.unboxed_correct}")
    if arguments.json:
        print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
