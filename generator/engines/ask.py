"""Asks the engine whether it can serve a model before anything starts, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from generator.config import GeneratorConfig
from services.errors import ModelError

DEADLINE_S = 300.0
"""Longest wait for an answer; importing vLLM alone takes 7 s on an idle machine."""


def _read(path: Path) -> dict[str, str] | None:
    """None when the engine's process ended without an answer."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


async def ask_engine(
    config: GeneratorConfig,
    folder: Path,
    *,
    max_model_len: int,
    published_types: Iterable[str],
    environ: Mapping[str, str],
) -> bool:
    """Whether the engine answered that it can serve the model in `folder`; ModelError with its reason if it cannot.

    `published_types`: safetensors' types of the tensors, one for each tensor. `environ`: the environment of the
    process that is asked; it is found by its PYTHONPATH, not in the working directory.
    """
    if config.engine != "vllm":
        return True
    question = {
        "model": str(folder),
        "config": config.model_dump(mode="json"),
        "max_model_len": max_model_len,
        "published_types": list(published_types),
    }
    with tempfile.TemporaryDirectory(prefix="sept-") as temporary:
        path = Path(temporary, "answer")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "generator.engines.vllm.ask", str(path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=environ,
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                await process.communicate(json.dumps(question).encode())
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        answer = await asyncio.to_thread(_read, path)
    if answer:
        raise ModelError(answer["refusal"], hint=answer["hint"])
    return answer is not None
