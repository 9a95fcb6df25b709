"""vLLM's processes end with the generator's."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.vllm_models import write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DEADLINE_S = 60.0

PARENT = """
import asyncio, sys
from pathlib import Path
from generator.config import GeneratorConfig
from generator.engines.create import create_engine

async def main():
    engine = create_engine(GeneratorConfig(cpu_cache_gib=0.25), max_model_len=512, cache=Path(sys.argv[2]))
    await engine.start(Path(sys.argv[1]), 0)
    print("started", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_engine_of_a_killed_generator_ends(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_tiny_model(model)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(model), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        try:
            assert parent.stdout is not None
            assert any(line == "started\n" for line in parent.stdout)
            handles = [os.pidfd_open(process) for process in descendants(parent.pid)]
        finally:
            parent.kill()
    assert len(handles) >= 2, "the engine core and its worker"
    for handle in handles:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        assert ended.poll(DEADLINE_S * 1e3), "a process of the engine is still running"
        os.close(handle)


def descendants(process: int) -> list[int]:
    """Processes started by any thread of `process` or of its descendants."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
