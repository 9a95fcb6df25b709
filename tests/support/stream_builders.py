"""Small valid tasks and rollouts, and what other processes of a run write into Redis or read from it."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from services.contracts import Rollout, Task, VersionSpan
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.events import Event, decode_event


def make_task(index: int, **changes: Any) -> Task:
    settings: dict[str, Any] = {
        "task_id": f"r000001-{index:05d}",
        "round": 1,
        "position": index,
        "prompt_tokens": [index, 7, 9],
        "temperature": 0.6,
        "max_response_tokens": 16,
        "min_weight_version": 0,
    }
    return Task(**(settings | changes))


def make_rollouts(task: Task, generator_id: str = "g0") -> list[Rollout]:
    return [
        Rollout(
            task_id=task.task_id,
            sample=sample,
            round=task.round,
            position=task.position,
            prompt_tokens=task.prompt_tokens,
            response_tokens=[5, 6, sample],
            finish_reason="stop",
            temperature=task.temperature,
            spans=(VersionSpan(weight_version=0, start=0, end=2), VersionSpan(weight_version=1, start=2, end=3)),
            generator_id=generator_id,
            queued_s=0.25,
            generate_s=1.5,
        )
        for sample in range(task.samples)
    ]


async def expire(client: redis.asyncio.Redis, keys: Keys, entry_id: bytes) -> None:
    """Makes a lease look as if its owner had been silent for a day; the owner and the delivery count stay."""
    pending: Any
    [pending] = await client.xpending_range(keys.tasks, scripts.GROUP, entry_id, entry_id, 1)
    await client.xclaim(keys.tasks, scripts.GROUP, pending["consumer"], 0, [entry_id], idle=86_400_000, justid=True)


def request_stop(client: redis.Redis, keys: Keys, stop: bool = True) -> None:
    """Requests what `sept stop` does, from a thread."""
    client.hset(keys.control, mapping={"stop_after_round": int(stop)})


def request_checkpoint(client: redis.Redis, keys: Keys) -> None:
    """Requests what `sept checkpoint` does, from a thread."""
    client.hset(keys.control, mapping={"checkpoint": 1})


def last_events(client: redis.Redis, keys: Keys, count: int = 100) -> list[Event]:
    """The newest events, the oldest of them first."""
    entries: Any = client.xrevrange(keys.events, count=count)
    return [decode_event(entry_id, fields) for entry_id, fields in reversed(entries)]
