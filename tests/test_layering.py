"""The house's walls: who may import whom, and what stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
    ours = [
        path
        for part in ("services", "learner", "generator", "deploy", "studies", "sept")
        for path in (ROOT / part).rglob("*.py")
    ]
    assert [str(path) for path in ours if path.stem in sys.stdlib_module_names] == []
