"""What the wheel holds, as pyproject.toml says it: every package that the command needs, and nothing else."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_wheel_holds_every_package_but_tests_and_benchmarks() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(WHEEL) == packages - {"tests", "benchmarks"}


def test_the_layers_are_checked_for_every_package_of_the_wheel() -> None:
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == set(WHEEL)


def test_no_module_of_the_wheel_imports_tests_or_benchmarks() -> None:
    for package in WHEEL:
        for path in (ROOT / package).rglob("*.py"):
            assert not imported_packages(path) & {"tests", "benchmarks"}, path


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for package in WHEEL for path in (ROOT / package).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def imported_packages(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in named}
