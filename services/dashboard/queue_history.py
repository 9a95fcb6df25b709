"""Records how full the queues and how busy this host was into queue.jsonl, a line every few seconds.

So the history survives restarts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError

from services import durable
from services.contracts import StatusSnapshot
from services.dashboard.host_use import HostUse
from services.errors import SeptError
from services.streams.connection import is_cancelled

EVERY_S = 10.0
"""A line is about 300 bytes: 2.6 MB a day."""

log = structlog.get_logger()


def line_of(snapshot: StatusSnapshot, time_s: float) -> dict[str, Any]:
    """The record of one status."""
    living = [status.heartbeat for status in snapshot.generators if not status.lost]
    busy = sum(beat.state == "generating" for beat in living)
    learner = snapshot.learner if not snapshot.learner_lost else None
    return {
        "time": round(time_s, 3),
        "tasks_queued": snapshot.tasks_queued,
        "tasks_leased": snapshot.tasks_leased,
        "rollouts_queued": snapshot.rollouts_queued,
        "dead_letters": snapshot.dead_letters,
        "oldest_task_s": round(snapshot.oldest_task_s, 3),
        "generators": len(living),
        "generators_lost": len(snapshot.generators) - len(living),
        "generators_busy": busy / len(living) if living else None,
        "learner_busy": float(learner.state == "training") if learner else None,
        "generator_tokens_per_s": round(sum(beat.tokens_per_s for beat in living), 3),
    }


async def record(path: Path, read: Callable[[], Awaitable[StatusSnapshot]], *, every_s: float = EVERY_S) -> None:
    """Append a line every `every_s` until cancelled; errors of Redis and of the disk are logged and skipped."""
    host = HostUse()
    while not is_cancelled():
        try:
            line = line_of(await read(), time.time()) | await asyncio.to_thread(host.read)
            await asyncio.to_thread(_append, path, line)
        except (SeptError, RedisError, OSError) as error:
            log.warning("queue_not_recorded", reason=str(error))
        await asyncio.sleep(every_s)


def _append(path: Path, line: dict[str, Any]) -> None:
    durable.append_line(path, json.dumps(line))
