"""The settings choose the engine, and only the chosen one is imported."""

from __future__ import annotations

import subprocess
import sys

from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from generator.engines.scripted import ScriptedEngine


def test_the_config_names_the_engine() -> None:
    assert isinstance(create_engine(GeneratorConfig(engine="scripted"), max_model_len=100), ScriptedEngine)


def test_the_scripted_engine_needs_neither_torch_nor_vllm() -> None:
    check = (
        "import sys; from generator.config import GeneratorConfig; from generator.engines.create import create_engine; "
        "create_engine(GeneratorConfig(engine='scripted'), max_model_len=100); "
        "sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
