"""vLLM starts its processes by spawning them, also where the environment asks for a fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INHERITED = os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}


def run(code: str) -> str:
    """What the code prints last, in a process that inherits `fork`."""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=INHERITED, stdout=subprocess.PIPE)
    return done.stdout.decode().splitlines()[-1]


def test_importing_the_package_selects_spawn_before_it_imports_vllm() -> None:
    code = (
        "import os, sys, generator.engines.vllm\n"
        "print(os.environ['VLLM_WORKER_MULTIPROC_METHOD'], 'vllm' in sys.modules)"
    )
    assert run(code) == "spawn False"


@pytest.mark.vllm
def test_vllm_spawns_its_engine_core() -> None:
    """On CPU vLLM selects spawn by itself, but only when an engine is created; this asks before that."""
    code = (
        "import generator.engines.vllm.engine\n"
        "from vllm.utils.system_utils import get_mp_context\n"
        "print(get_mp_context().get_start_method())"
    )
    assert run(code) == "spawn"
