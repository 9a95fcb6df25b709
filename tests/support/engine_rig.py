"""An engine with weights that change, as the contract tests drive it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.engines.base import Engine
from services.contracts import Task
from services.tensors import RawTensor
from tests.support.vllm_models import changed, update_between

FIRST_VERSION = 3


DEADLINE_S = 60.0


@dataclass
class Rig:
    """A started engine and the newest version that it serves."""

    engine: Engine
    folder: Path
    version: int
    tensors: Mapping[str, RawTensor]

    async def update(self, *, sparse: bool = True, version: int | None = None) -> float:
        version = self.version + 1 if version is None else version
        new = changed(self.tensors, seed=version)
        pause_s = await self.engine.apply(update_between(version, self.tensors, new, sparse=sparse))
        self.version, self.tensors = version, new
        return pause_s

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition never became true"
            await asyncio.sleep(0.001)


def task(task_id: str = "r000000-00000", **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "round": 0,
        "position": 0,
        "prompt_tokens": [5, 9, 200, 31, 7],
        "temperature": 1.0,
        "max_response_tokens": 20,
        "min_weight_version": 0,
    }
    return Task.model_validate(fields | changes)
