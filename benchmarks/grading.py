"""Compares this project's grading with plain math-verify on the reference answers of benchmarks.

    python -m benchmarks.grading math500=data/math500.parquet minerva=data/minerva.parquet

Every reference is graded as an answer to itself, and as an answer to other problems of its benchmark: the NEIGHBOURS
whose references are closest to it in the alphabet, and so look most alike. The table counts what each grader finds
equal; the disagreements follow.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from learner.data.dataset import read_questions
from learner.grading.math_grading import same_answer

NEIGHBOURS = 20
TIMEOUT_S = 5


@dataclass
class Agreement:
    """Counts over the pairs of one benchmark."""

    name: str
    pairs: int = 0
    ours: int = 0
    theirs: int = 0
    disagreements: list[tuple[str, str, bool]] = field(default_factory=list)
    """(answer, reference, whether ours finds them equal)"""

    def add(self, answer: str, truth: str, ours: bool, theirs: bool) -> None:
        self.pairs += 1
        self.ours += ours
        self.theirs += theirs
        if ours != theirs:
            self.disagreements.append((answer, truth, ours))

    def row(self) -> str:
        agreed = 1 - len(self.disagreements) / max(1, self.pairs)
        return f"| {self.name} | {self.pairs} | {self.ours} | {self.theirs} | {agreed:.2%} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("benchmarks", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    tables = [compare(*text.split("=", 1)) for text in arguments.benchmarks]
    for title, chosen in (("To itself", 0), ("To other problems", 1)):
        print(
            f"\n{title}\n\n| benchmark | pairs | equal: ours | equal: math-verify | agreement |\n|---|---|---|---|---|"
        )
        for table in tables:
            print(table[chosen].row())
    for table in tables:
        for agreement in table:
            for answer, truth, ours in agreement.disagreements:
                print(f"{agreement.name}\t{'ours' if ours else 'math-verify'} finds equal\t{answer!r}\t{truth!r}")
    if arguments.json:
        names = ("to_itself", "to_others")
        print(json.dumps([{name: asdict(part) for name, part in zip(names, table, strict=True)} for table in tables]))
    return 0


def compare(name: str, path: str) -> tuple[Agreement, Agreement]:
    """Both graders on the references of one benchmark: each to itself, and to others."""
    truths = sorted(question.answer for question in read_questions(path) if question.answer)
    parsed = {truth: parse(truth) for truth in dict.fromkeys(truths)}
    itself, others = Agreement(name), Agreement(name)
    for truth in truths:
        itself.add(truth, truth, same_answer(truth, truth), verify(parsed[truth], parsed[truth]))
    for answer, truth in other_pairs(list(parsed)):
        others.add(answer, truth, same_answer(answer, truth), verify(parsed[truth], parsed[answer]))
    return itself, others


def other_pairs(truths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Distinct references next to each other in the alphabet, as (answer, reference)."""
    for position, truth in enumerate(truths):
        first = max(0, position - NEIGHBOURS // 2)
        for answer in truths[first : position + NEIGHBOURS // 2 + 1]:
            if answer != truth:
                yield answer, truth


def parse(text: str) -> list[object]:
    import math_verify

    parsed: list[object] = math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=TIMEOUT_S)
    return parsed


def verify(gold: list[object], answer: list[object]) -> bool:
    import math_verify

    return bool(math_verify.verify(gold, answer, timeout_seconds=TIMEOUT_S))


if __name__ == "__main__":
    sys.exit(main())
