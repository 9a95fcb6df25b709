"""Plants mistakes in the modules of the promises and says which the tests do not notice.

    python -m tests.mutants                                all modules; goes on where it was cut short
    python -m tests.mutants services/streams learner/loop.py
    python -m tests.mutants --table                        what is known so far; runs nothing

It takes hours, so it is no part of the tests. A survivor is closed by an assertion on behaviour, or has an entry in
equivalent.toml with the reason why no test can notice it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants.scratch import KILLED, SURVIVED, TIMEOUTS, Scratch
from tests.mutants.targets import HERE, Target, targets

EQUIVALENT = HERE / "equivalent.toml"
_CAST = re.compile(r'\bcast\(("[^"]*"|\w+), ')


@dataclass
class Score:
    """What became of one module's mutants."""

    target: Target
    killed: int = 0
    equivalent: int = 0
    untried: int = 0
    survivors: list[tuple[str, str]] = field(default_factory=list)
    outdated: set[tuple[str, str]] = field(default_factory=set)
    """Entries of equivalent.toml whose mutant was noticed or is no more."""

    @property
    def share(self) -> float | None:
        """Of the mutants that could be noticed, those that were."""
        tried = self.killed + len(self.survivors)
        return self.killed / tried if tried else None

    def as_row(self) -> str:
        share = "" if self.share is None else f"{self.share:.0%}"
        counts = (self.killed, len(self.survivors), self.equivalent, self.untried)
        return f"| {self.target.module} | {' | '.join(map(str, counts))} | {share} |"


def equivalents(module: str, path: Path = EQUIVALENT) -> set[tuple[str, str]]:
    """Changes of this module that nothing can notice: (lines as they were, as the mutant has them)."""
    entries = tomllib.loads(path.read_text()).get(module, [])
    return {(entry["was"], entry["now"]) for entry in entries if entry["why"]}


def score(target: Target) -> Score:
    """From the results so far."""
    scratch, known = Scratch(target), equivalents(target.module)
    found = Score(target, outdated=set(known))
    for mutant, code in scratch.results().items():
        if code in KILLED | TIMEOUTS:
            found.killed += 1
        elif code in SURVIVED:
            change = scratch.change_of(mutant)
            if change in known or _same_but_for_casts(*change):
                found.equivalent += 1
                found.outdated.discard(change)
            else:
                found.survivors.append(change)
        else:
            found.untried += 1
    return found


def _same_but_for_casts(was: str, now: str) -> bool:
    """Whether only a type that `cast` is given differs: nothing but the type checker reads it."""
    return _CAST.sub("cast(", was) == _CAST.sub("cast(", now)


def main(arguments: list[str]) -> None:
    """Run what is asked for, then print survivors and the table."""
    only_table = "--table" in arguments
    asked = tuple(argument.rstrip("/") for argument in arguments if argument != "--table")
    chosen = [one for one in targets() if not asked or one.module.startswith(asked)]
    rows = []
    for target in chosen:
        if not only_table:
            if not target.tests:
                print(f"{target.module} has no tests of its own")
                continue
            code = Scratch(target).run()
            if code:
                print(f"mutmut ended with {code}; see {Scratch(target).folder}/mutmut.log")
        found = score(target)
        rows.append(found.as_row())
        print(f"\n{target.module}: {found.killed} noticed, {len(found.survivors)} not")
        for was, now in found.survivors:
            print(f"    - {was}\n    + {now}")
        if not found.untried:
            for was, now in sorted(found.outdated):
                print(f"    not met any more, in {EQUIVALENT.name}:\n    - {was}\n    + {now}")
    print("\n| module | noticed | not | equivalent | untried | share |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
