"""Short word problems for a small model on CPU, from a file of GSM8K's form: those of at most two calculations.

    python -m studies.word_problems gsm8k_train.jsonl .cache/word-problems

writes prompts.jsonl, to train on, and held-out.jsonl, to evaluate on. Which problem goes where depends on its text
alone, so more rows in the file move none. Never give it a test set: its problems would be trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3
from rich.console import Console

from deploy import exit_codes
from services import durable
from services.errors import DataError, SeptError

CALCULATION = "<<"
"""Begins a calculation in the solutions of GSM8K."""
MOST_CALCULATIONS = 2
MOST_CHARACTERS = 160
"""Of a question."""
HELD_OUT = 96
"""Problems to evaluate on."""

Problem = dict[str, str]


def short_problems(rows: Iterable[dict[str, Any]]) -> list[Problem]:
    """Question and final answer of the short ones, each question once, in an order that their texts fix."""
    chosen = {}
    for row in rows:
        question, solution = str(row["question"]).strip(), str(row["answer"])
        _, _, answer = solution.rpartition("####")
        if len(question) <= MOST_CHARACTERS and 1 <= solution.count(CALCULATION) <= MOST_CALCULATIONS:
            chosen[question] = answer.strip()
    ordered = sorted(chosen, key=lambda question: blake3(question.encode()).digest())
    return [{"question": question, "answer": chosen[question]} for question in ordered]


def write(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write both files; DataError when the source has too few short problems."""
    with durable.explained(source):
        lines = source.read_text(encoding="utf-8").splitlines()
    problems = short_problems(json.loads(line) for line in lines if line.strip())
    if len(problems) < 2 * HELD_OUT:
        raise DataError(
            f"{source} has {len(problems)} short problems with calculations in {CALCULATION}...>>, and "
            f"{2 * HELD_OUT} are needed",
            hint="give GSM8K's training set as JSON lines",
        )
    prompts, held_out = folder / "prompts.jsonl", folder / "held-out.jsonl"
    with durable.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _write(problems[HELD_OUT:], prompts)
    _write(problems[:HELD_OUT], held_out)
    return prompts, held_out


def _write(problems: Sequence[Problem], path: Path) -> None:
    durable.write_file(path, "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems))


def main() -> int:
    """Write the two files; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="JSON lines of GSM8K's form")
    parser.add_argument("folder", type=Path, help="where the two files go")
    arguments = parser.parse_args()
    console = Console()
    try:
        written = write(arguments.source, arguments.folder)
    except SeptError as error:
        console.print(str(error), style="red", highlight=False)
        return exit_codes.code_of(error)
    console.print(*written, sep="\n", highlight=False)
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
