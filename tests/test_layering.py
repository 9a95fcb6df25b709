"""Who may import whom, what stays light, and rooms that can be surveyed."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept")
MAX_MODULES = 14
HEAVY = ("torch", "transformers", "vllm", "ray", "datasets", "math_verify", "numpy.testing")


def modules_after(statement: str) -> set[str]:
    """Names in sys.modules after running the statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    return set(run.stdout.split())


def test_no_import_crosses_a_wall() -> None:
    linted = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    "module",
    [
        "services.server",
        "services.streams.tasks",
        "services.weights.mirror",
        "services.config",
        "learner.config",
        "generator.config",
        "deploy.settings",
        "sept.cli",
        "deploy.local.rank_launcher",
    ],
)
def test_the_light_modules_import_nothing_heavy(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


def test_the_scripted_generator_needs_neither_torch_nor_vllm() -> None:
    assert modules_after("import generator.loop, generator.engines.scripted").isdisjoint(HEAVY)


def test_no_module_hides_one_of_the_standard_library() -> None:
    assert [str(path) for path in sources() if path.stem in sys.stdlib_module_names] == []


def test_no_folder_holds_more_modules_than_a_reader_can_survey() -> None:
    modules = Counter(path.parent for path in sources() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in modules.items() if count > MAX_MODULES} == {}


def test_no_two_rooms_import_each_other() -> None:
    """A room is a folder, or a module that stands directly in a package."""
    arrows = {(room_of(a), room_of(b)) for a in names() for b in imports_of(a) if room_of(a) != room_of(b)}
    sorter = TopologicalSorter[str]()
    for importer, imported in arrows:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        raise AssertionError(f"these import each other in a circle: {' -> '.join(error.args[1])}") from None
    assert len(arrows) > 100, "the imports were read"


def test_no_test_imports_another_test() -> None:
    """What several tests need stands in tests/support."""
    wrong = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module is not None
        and re.search(r"\.(test_|conftest)", node.module)
    ]
    assert wrong == []


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


@cache
def names() -> dict[str, Path]:
    """Dotted name -> file of every module."""
    paths = {path: path.relative_to(ROOT).with_suffix("").parts for path in sources()}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in paths.items()}


def imports_of(name: str) -> set[str]:
    """The modules of ours that a module imports when it is loaded; not what a function imports when it is called."""
    ours = names()
    found = set()
    for node in ast.parse(ours[name].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {candidate if candidate in ours else node.module for candidate in candidates}
    return found & ours.keys()


def room_of(name: str) -> str:
    parts = name.split(".")
    path = names()[name]
    return ".".join(parts if path.name == "__init__.py" or len(parts) == 2 else parts[:-1])
