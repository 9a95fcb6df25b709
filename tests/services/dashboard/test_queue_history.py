"""The queues' history goes on across restarts and survives a Redis that is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from services.contracts import GeneratorStatus, Part, StatusSnapshot
from services.dashboard.queue_history import line_of, record
from services.errors import UnavailableError
from tests.support.heartbeats import heartbeat


def snapshot(**changes: Any) -> StatusSnapshot:
    rows = [
        GeneratorStatus(
            heartbeat=heartbeat(Part.GENERATOR, f"g{n}", state, tokens_per_s=10.0), age_s=age_s, lost=age_s > 5
        )
        for n, (state, age_s) in enumerate([("generating", 1.0), ("waiting_for_tasks", 1.0), ("generating", 60.0)])
    ]
    values = {
        "run_id": "run", "state": "running", "detail": "", "round": 1, "rounds_total": 2, "weight_version": 1,
        "weight_digest": None, "last_round": None, "learner": heartbeat(Part.LEARNER, "learner", "training"),
        "learner_lost": False, "generators": tuple(rows), "generators_target": None, "tasks_queued": 3,
        "tasks_leased": 4, "rollouts_queued": 5, "dead_letters": 0, "oldest_task_s": 1.5,
    }  # fmt: skip
    return StatusSnapshot.model_validate(values | changes)


def test_a_look_counts_the_living() -> None:
    line = line_of(snapshot(), 12.0)
    assert (line["time"], line["tasks_queued"], line["oldest_task_s"]) == (12.0, 3, 1.5)
    assert (line["generators"], line["generators_lost"], line["generators_busy"]) == (2, 1, 0.5)
    assert (line["learner_busy"], line["generator_tokens_per_s"]) == (1.0, 20.0)


def test_without_parts_nobody_is_busy() -> None:
    line = line_of(snapshot(learner=None, generators=()), 0.0)
    assert (line["generators"], line["generators_busy"], line["learner_busy"]) == (0, None, None)


async def test_recording_rides_out_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "queue.jsonl"
    looks = 0
    done = asyncio.Event()

    async def read() -> StatusSnapshot:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise UnavailableError("Redis is away")
        if looks == 4:
            done.set()
        return snapshot()

    task = asyncio.create_task(record(path, read, every_s=0.0))
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= 2
    assert {line["tasks_queued"] for line in lines} == {3}
    assert all(0 <= line["memory_use"] <= 1 for line in lines)
