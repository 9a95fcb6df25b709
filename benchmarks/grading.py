"""Compares this project's grading with plain math-verify, on reference answers and on answers of a model.

    python -m benchmarks.grading math500=data/math500.parquet minerva=data/minerva.parquet
    python -m benchmarks.grading --answers runs/eval/generations.jsonl

The first grades every reference as an answer to itself, and as an answer to other problems of its benchmark: the
NEIGHBOURS whose references are closest to it in the alphabet, and so look most alike. The second grades the stored
answers of an evaluation again, by both of this project's verifiers and by math-verify. Tables count what each finds
right; the disagreements follow.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.verifiers import grade_by_both
from learner.data.dataset import read_questions
from learner.evaluation.generations import read_generations
from learner.grading.math_grading import same_answer

NEIGHBOURS = 20
TIMEOUT_S = 5
"""math-verify's own limits, its default: seconds for parsing, and for comparing."""
LIMIT_S = 30.0
"""Processor time for one pair. Its own limit is an alarm, which a computation inside one C call does not see."""
MEMORY_BYTES = 8 << 30
"""Address space of the process that runs math-verify."""
SHOWN_CHARACTERS = 160
"""Of an answer's end, in the list of disagreements."""


@dataclass
class Agreement:
    """Counts over the pairs of one benchmark."""

    name: str
    pairs: int = 0
    ours: int = 0
    theirs: int = 0
    undecided: int = 0
    """Pairs for which math-verify came to no end within LIMIT_S; they count as not equal."""
    disagreements: list[tuple[str, str, bool]] = field(default_factory=list)
    """(answer, reference, whether ours finds them equal)"""

    def add(self, answer: str, truth: str, ours: bool, theirs: bool | None) -> None:
        self.pairs += 1
        self.ours += ours
        self.theirs += theirs is True
        self.undecided += theirs is None
        if ours != (theirs is True):
            self.disagreements.append((answer, truth, ours))

    def row(self) -> str:
        agreed = 1 - len(self.disagreements) / max(1, self.pairs)
        return f"| {self.name} | {self.pairs} | {self.ours} | {self.theirs} | {self.undecided} | {agreed:.2%} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("benchmarks", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--answers", type=Path, help="generations.jsonl of an evaluation")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    if bool(arguments.benchmarks) == bool(arguments.answers):
        parser.error("name benchmarks or --answers")
    with MathVerify() as math_verify:
        if arguments.answers:
            _print_answers(compare_answers(arguments.answers, math_verify), as_json=arguments.json)
        else:
            named = [text.partition("=") for text in arguments.benchmarks]
            tables = [compare(name, path, math_verify) for name, _, path in named]
            _print_references(tables, as_json=arguments.json)
    return 0


def _print_references(tables: Sequence[tuple[Agreement, Agreement]], *, as_json: bool) -> None:
    for title, chosen in (("To itself", 0), ("To other problems", 1)):
        print(f"\n{title}\n\n| benchmark | pairs | equal: ours | equal: math-verify | no end | agreement |")
        print("|---|---|---|---|---|---|")
        for table in tables:
            print(table[chosen].row())
    for table in tables:
        for agreement in table:
            for answer, truth, ours in agreement.disagreements:
                print(f"{agreement.name}\t{'ours' if ours else 'math-verify'} finds equal\t{answer!r}\t{truth!r}")
    if as_json:
        names = ("to_itself", "to_others")
        print(json.dumps([{name: asdict(part) for name, part in zip(names, table, strict=True)} for table in tables]))


def compare(name: str, path: str, math_verify: MathVerify) -> tuple[Agreement, Agreement]:
    """Both graders on the references of one benchmark: each to itself, and to others."""
    truths = sorted(question.answer for question in read_questions(path) if question.answer)
    itself, others = Agreement(name), Agreement(name)
    for truth in truths:
        itself.add(truth, truth, same_answer(truth, truth), math_verify.correct(boxed(truth), truth))
    for answer, truth in other_pairs(list(dict.fromkeys(truths))):
        others.add(answer, truth, same_answer(answer, truth), math_verify.correct(boxed(answer), truth))
    return itself, others


def other_pairs(truths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Distinct references next to each other in the alphabet, as (answer, reference)."""
    for position, truth in enumerate(truths):
        first = max(0, position - NEIGHBOURS // 2)
        for answer in truths[first : position + NEIGHBOURS // 2 + 1]:
            if answer != truth:
                yield answer, truth


@dataclass(frozen=True)
class Verdict:
    """What three graders say of one answer of a model."""

    benchmark: str
    problem: int
    sample: int
    truth: str
    answer: str
    """What ours found in the response."""
    response: str
    ours: bool
    strict: bool
    math_verify: bool | None
    """None: it came to no end within LIMIT_S."""


def compare_answers(path: Path, math_verify: MathVerify) -> list[Verdict]:
    """The verdicts on all answers in a generations.jsonl."""
    stored = list(read_generations(path))
    ours, strict = grade_by_both(stored)
    return [
        Verdict(
            one.benchmark,
            one.problem,
            one.sample,
            one.truth,
            grade.answer,
            one.response,
            grade.correct,
            strict_grade.correct,
            math_verify.correct(one.response, one.truth),
        )
        for one, grade, strict_grade in zip(stored, ours, strict, strict=True)
    ]


def _print_answers(verdicts: Sequence[Verdict], *, as_json: bool) -> None:
    print("| benchmark | answers | right: ours | strict | math-verify | no end | ours = math-verify | ours = strict |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(one.benchmark for one in verdicts):
        _print_row(name, [one for one in verdicts if one.benchmark == name])
    _print_row("all", verdicts)
    for one in verdicts:
        if not one.ours == one.strict == (one.math_verify is True):
            who = [name for name in ("ours", "strict", "math_verify") if getattr(one, name)]
            end = one.response[-SHOWN_CHARACTERS:]
            print(f"{one.benchmark}\tright: {', '.join(who) or 'none'}\t{one.answer!r}\t{one.truth!r}\t{end!r}")
    if as_json:
        print(json.dumps([asdict(one) for one in verdicts]))


def _print_row(name: str, verdicts: Sequence[Verdict]) -> None:
    count = max(1, len(verdicts))
    right = [sum(getattr(one, grader) is True for one in verdicts) for grader in ("ours", "strict", "math_verify")]
    undecided = sum(one.math_verify is None for one in verdicts)
    same = sum(one.ours == (one.math_verify is True) for one in verdicts) / count
    same_strict = sum(one.ours == one.strict for one in verdicts) / count
    shares = " | ".join(f"{number} ({number / count:.1%})" for number in right)
    print(f"| {name} | {len(verdicts)} | {shares} | {undecided} | {same:.2%} | {same_strict:.2%} |")


def boxed(text: str) -> str:
    return rf"\boxed{{{text}}}"


class MathVerify:
    """Plain math-verify in a process that the kernel ends when a pair takes it too long.

    with MathVerify() as math_verify:
        math_verify.correct(r"So it is \\boxed{0.5}.", r"\\frac{1}{2}")      True
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._context = multiprocessing.get_context("forkserver")
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def correct(self, response: str, truth: str) -> bool | None:
        """Whether it finds the response right; None where it came to no end within the limit."""
        connection = self._connection or self._start()
        connection.send((response, truth))
        try:
            found: bool = connection.recv()
        except EOFError:
            self._end()
            return None
        return found

    def _start(self) -> Connection:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._limit_s), daemon=True)
        self._process.start()
        theirs.close()
        return self._connection

    def _end(self) -> None:
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = self._connection = None


def _serve(connection: Connection, limit_s: float) -> None:
    """Main function of the process that runs math-verify."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parse = lru_cache(maxsize=1000)(partial(math_verify.parse, parsing_timeout=TIMEOUT_S))
    while True:
        try:
            response, truth = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        correct = math_verify.verify(parse(boxed(truth)), parse(response), timeout_seconds=TIMEOUT_S)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(bool(correct))


if __name__ == "__main__":
    sys.exit(main())
