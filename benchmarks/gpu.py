"""Everything that has to be shown on a GPU, in one command; and without one, as much of it as can be walked through.

    python -m benchmarks.gpu --json                on a GPU machine
    python -m benchmarks.gpu --learner-only        where torch is and vLLM is not (see benchmarks.gpu_bundle)
    python -m benchmarks.gpu --dry-run             on any machine with g++: memory, copies and traffic on fake devices

A step that cannot run here is reported with its reason, and the others go on; the exit code is 1 when one has failed.
A dry run shows that every branch of the learner's CUDA code executes on shapes of 0.5B to 32B and what it takes. It
does not show the kernels' numbers, speed, NCCL or vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
GIB = 2**30
DEADLINE_S = 3600.0
TARGETS = {"mfu of 1.5b": 0.40, "pause of 0.5b in ms": 10.0}
"""Least MFU; longest pause."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step."""

    name: str
    status: Literal["passed", "failed", "not run"]
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One part of the acceptance on a GPU."""

    name: str
    run: Callable[[], Result]
    needs_vllm: bool = False
    dry_run: Callable[[], Result] | None = None
    """The same without a GPU; None: there is nothing to walk through."""


def command(arguments: Sequence[str], *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A Python module in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=DEADLINE_S,
    )


def suite(*paths: str) -> Result:
    """The tests that are marked `gpu`, without the fixtures of the other tests, which need more than the learner."""
    arguments = ["pytest", "-q", "-W", "default", "-m", "gpu", "--confcutdir", "tests/gpu", "-p", "no:cacheprovider"]
    done = command([*arguments, *paths])
    last = done.stdout.strip().splitlines()[-1:] or ["no output"]
    if done.returncode:
        return Result("suite", "failed", f"{last[0]}\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return Result("suite", "passed", last[0])


def mfu(shape: str, *options: str) -> Result:
    """How much of the GPU a training step uses."""
    name = f"mfu of {shape}"
    done = command(["benchmarks.learner_mfu", "--shapes", shape, *options, "--json"])
    if done.returncode:
        return Result(name, "failed", done.stderr[-2000:])
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    least = TARGETS.get(name, 0.0)
    reached = figures[shape]["mfu"] >= least
    return Result(name, "passed" if reached else "failed", "" if reached else f"less than {least:.0%}", figures)


def pause() -> Result:
    """How long an update makes a vLLM engine stand still, on the shape of 0.5B."""
    from benchmarks.learner_mfu import SHAPES, write_model

    name = "pause of 0.5b in ms"
    with tempfile.TemporaryDirectory(prefix="sept-gpu-") as folder:
        write_model(Path(folder), SHAPES["0.5b"])
        done = command(["benchmarks.weight_engine", "--model", folder, "--json"])
    if done.returncode:
        return Result(name, "failed", done.stderr[-2000:])
    return Result(name, "passed", f"at most {TARGETS[name]:.0f} ms are asked for", json.loads(done.stdout))


def on_fake_devices(name: str, scenarios: Sequence[dict[str, Any]]) -> Result:
    """Optimizer steps on fake CUDA devices."""
    from tests.support.fake_cuda.device import COMPILER, has_compiler

    if not has_compiler():
        return Result(name, "not run", f"{COMPILER} is not installed, which builds the fake device")
    done = command(["tests.support.fake_cuda"], stdin=json.dumps(scenarios))
    if done.returncode:
        return Result(name, "failed", done.stderr[-2000:])
    figures = {}
    for scenario, found in zip(scenarios, map(json.loads, done.stdout.splitlines()), strict=True):
        what = ", ".join(f"{key} {value}" for key, value in scenario.items())
        figures[what] = {
            "peak_gib": round(max(found["training_peak_bytes"], found["update_peak_bytes"]) / GIB, 1),
            "moved_gb": round(found["moved_bytes"] / 1e9),
            **{key: found[key] for key in ("attention_calls", "host_to_device", "device_to_host", "items", "launches")},
        }
    return Result(name, "passed", figures=figures)


ALGORITHMS = [{"model": "0.5b", "algorithm": name, "micro_batches": 1} for name in ("nll", "entropy", "grpo")]
SAVING = [{"model": "0.5b", "gradient_checkpointing": mode} for mode in ("off", "light", "full")]
LARGE: list[dict[str, Any]] = [
    {"model": "7b", "gradient_checkpointing": "full", "lora_rank": 16},
    {"model": "7b", "gradient_checkpointing": "full", "ranks": 2, "training": {"optimizer_offload": True}},
    {"model": "7b", "gradient_checkpointing": "full", "ranks": 4},
    {"model": "7b", "gradient_checkpointing": "full", "ranks": 8},
    {"model": "32b", "gradient_checkpointing": "full", "ranks": 16, "micro_batches": 1},
]

STEPS = [
    Step(
        "suite",
        lambda: suite("tests/gpu"),
        dry_run=lambda: on_fake_devices("suite", [*ALGORITHMS, *SAVING]),
    ),
    Step("mfu of 0.5b", lambda: mfu("0.5b"), dry_run=lambda: on_fake_devices("mfu of 0.5b", [{"model": "0.5b"}])),
    Step(
        "mfu of 1.5b",
        lambda: mfu("1.5b", "--gradient-checkpointing", "light"),
        dry_run=lambda: on_fake_devices("mfu of 1.5b", [{"model": "1.5b", "gradient_checkpointing": "light"}]),
    ),
    Step(
        "mfu of 7b",
        lambda: mfu("7b", "--gradient-checkpointing", "full", "--optimizer-offload"),
        dry_run=lambda: on_fake_devices("mfu of 7b", LARGE),
    ),
    Step("pause of 0.5b in ms", pause, needs_vllm=True),
]


def take(step: Step, *, dry_run: bool, learner_only: bool) -> Result:
    """Run a step, or say why not."""
    if dry_run:
        return step.dry_run() if step.dry_run else Result(step.name, "not run", "needs a GPU and vLLM from end to end")
    if step.needs_vllm and (learner_only or find_spec("vllm") is None):
        return Result(step.name, "not run", "vLLM is not installed")
    return step.run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, on fake devices")
    parser.add_argument("--learner-only", action="store_true", help="leave out what needs vLLM")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not options.dry_run:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here\n\nhint: --dry-run walks through what needs none")
    results = []
    for step in STEPS:
        if options.only is None or step.name in options.only:
            results.append(take(step, dry_run=options.dry_run, learner_only=options.learner_only))
            if not options.json:
                _print(results[-1])
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return int(any(result.status == "failed" for result in results))


def _print(result: Result) -> None:
    print(f"{result.status:8} {result.name}  {result.reason}", flush=True)
    for name, figure in result.figures.items():
        print(f"         {name}: {figure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
