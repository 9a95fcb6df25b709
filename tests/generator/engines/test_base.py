"""The parts of the engine contract that need no engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from generator.config import GeneratorConfig
from generator.engines.base import create_engine, version_spans
from generator.engines.scripted import ScriptedEngine


@pytest.mark.parametrize(
    ("versions", "spans"),
    [
        ([], []),
        ([3], [(3, 0, 1)]),
        ([3, 3, 4], [(3, 0, 2), (4, 2, 3)]),
        ([1, 2, 2, 5], [(1, 0, 1), (2, 1, 3), (5, 3, 4)]),
    ],
)
def test_version_spans_join_equal_neighbours(versions: list[int], spans: list[tuple[int, int, int]]) -> None:
    assert [(span.weight_version, span.start, span.end) for span in version_spans(versions)] == spans


def test_the_config_names_the_engine() -> None:
    assert isinstance(create_engine(GeneratorConfig(engine="scripted")), ScriptedEngine)


def test_the_scripted_engine_needs_neither_torch_nor_vllm() -> None:
    check = (
        "import sys; from generator.config import GeneratorConfig; from generator.engines.base import create_engine; "
        "create_engine(GeneratorConfig(engine='scripted')); sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
