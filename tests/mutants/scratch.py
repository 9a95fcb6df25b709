"""A copy of the project in which mutmut changes one module; it stays, so that a run that is cut short goes on.

mutmut compiles every mutant of a function beside the original and chooses one by an environment variable. So each
mutant costs a fork and the tests that cover its function, and processes that a test starts have the mutant, too. The
forks are those of a process that has run no test: threads of one, such as those that digest files, would be missed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.mutants.targets import ROOT, Target

FOLDER = ROOT / "test-output" / "mutants"
PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept", "benchmarks")

WORDS = (r"\bhint=", r"^\s*(self\.)?_?log\.\w+\(")
"""Lines that say something to a person and decide nothing: what they say is read in reviews."""

KILLED = {1, 3}
"""Exit codes of mutmut's worker: a test failed, or pytest did."""
TIMEOUTS = {-24, 24, 36, 152, 255}
SURVIVED = {0, 5, 33}
"""All tests passed, or there were none."""

CONFIG = """\
[mutmut]
source_paths = {packages}
also_copy = docs
    shared
    Makefile
only_mutate = {module}
do_not_mutate_patterns = {words}
pytest_add_cli_args = -pno:cacheprovider
    -mnot slow and not gpu and not vllm
pytest_add_cli_args_test_selection = {tests}
timeout_constant = 5
process_isolation = forkserver
track_dependencies = false
use_git_change_detection = false
"""


class Scratch:
    """One module's mutants and what became of them."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.folder = FOLDER / target.name
        self._meta = self.folder / "mutants" / f"{target.module}.meta"
        self._tested_with = self.folder / "tests.sha256"

    def run(self) -> int:
        """Try the mutants that have no result yet; survivors again if the tests have changed. mutmut's exit code."""
        self._copy_project()
        self._forget_survivors_of_other_tests()
        environ = {**os.environ, "PYTHONPATH": str(self.folder / "mutants"), "OMP_NUM_THREADS": "1"}
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
        with (self.folder / "mutmut.log").open("wb") as log:
            return subprocess.run(command, cwd=self.folder, env=environ, stdout=log, stderr=log, check=False).returncode

    def results(self) -> dict[str, int | None]:
        """Exit code of the worker by mutant; None: not tried yet."""
        if not self._meta.exists():
            return {}
        codes: dict[str, int | None] = json.loads(self._meta.read_text())["exit_code_by_key"]
        return codes

    def change_of(self, mutant: str) -> tuple[str, str]:
        """The lines that the mutant changes: as they were, and as they are."""
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("mutmut")), "show", mutant],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        was, now = (
            " ".join(line[1:].strip() for line in shown if line.startswith(sign) and not line.startswith(sign * 3))
            for sign in "-+"
        )
        return was, now

    def _copy_project(self) -> None:
        self.folder.joinpath("mutants").mkdir(parents=True, exist_ok=True)  # on the path from the start
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
        for package in (*PACKAGES, "tests"):
            for path in (self.folder / package).rglob("*.py"):
                if path.relative_to(self.folder).as_posix() not in names:
                    path.unlink()
        for name in names:
            source, copy = ROOT / name, self.folder / name
            if not copy.exists() or copy.read_bytes() != source.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        self.folder.joinpath("setup.cfg").write_text(
            CONFIG.format(
                packages=_lines(PACKAGES),
                module=self.target.module,
                words=_lines(WORDS),
                tests=_lines(self.target.tests),
            )
        )

    def _forget_survivors_of_other_tests(self) -> None:
        digest = hashlib.sha256()
        for test in (
            *self.target.tests,
            *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tests/support/*.py")),
        ):
            digest.update((ROOT / test).read_bytes())
        if self._meta.exists() and self._tested_with.read_text() != digest.hexdigest():
            meta = json.loads(self._meta.read_text())
            codes = meta["exit_code_by_key"]
            meta["exit_code_by_key"] = {name: None if code in SURVIVED else code for name, code in codes.items()}
            self._meta.write_text(json.dumps(meta, indent=4))
            (self.folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        self._tested_with.write_text(digest.hexdigest())


def _lines(values: tuple[str, ...]) -> str:
    return "\n    ".join(values)
