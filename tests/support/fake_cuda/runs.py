"""Measurements for tests, from a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.fake_cuda import device
from tests.support.fake_cuda.scenario import Measurement, Scenario

ROOT = Path(__file__).parents[3]
DEADLINE_S = 840.0
"""For a machine on which much else is going on; alone it takes a minute."""

needs_compiler = pytest.mark.skipif(not device.has_compiler(), reason=f"{device.COMPILER} builds the fake CUDA device")


def measure_all(scenarios: Sequence[Scenario]) -> list[Measurement]:
    """One measurement per scenario. The process takes about 8 s to start; group what is measured."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_cuda"],
        input=json.dumps([asdict(scenario) for scenario in scenarios]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE_S,
    )
    assert run.returncode == 0, run.stderr
    return [Measurement(**json.loads(line)) for line in run.stdout.splitlines()]
