"""Flight records: what is known about a local run at the moment when it failed, in one file."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from deploy.local.processes import last_log_lines
from deploy.local.supervisor_log import SupervisorLog
from services import durable
from services.errors import UnavailableError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect_async
from services.streams.events import AsyncEventLog

LAST_EVENTS = 200
REDIS_ANSWERS_WITHIN_S = 3.0
RECORDED_LINES = 60
"""Log lines of each part that a flight record holds."""


def write_flight_record(
    folder: RunFolder, log: SupervisorLog, reason: str, part_events: Iterable[dict[str, Any]] = ()
) -> Path:
    """Write the reason, the supervisor's events, the parts' events and the ends of all logs; returns the file."""
    record = {
        "reason": reason,
        "time": time.time(),
        "supervisor": log.last_events,
        "parts": list(part_events),
        "logs": {part: last_log_lines(path, RECORDED_LINES) for part, path in folder.log_files().items()},
    }
    path = folder.new_flight_record()
    durable.write_file(path, json.dumps(record, indent=1) + "\n")
    return path


async def last_part_events(redis_url: str, run_id: str) -> list[dict[str, Any]]:
    """The last events that the parts left in Redis; none when Redis does not answer."""
    try:
        client = await connect_async(redis_url, deadline_s=REDIS_ANSWERS_WITHIN_S)
    except UnavailableError:
        return []
    try:
        return [dataclasses.asdict(event) for event in await AsyncEventLog(client, Keys(run_id)).tail(LAST_EVENTS)]
    except (RedisError, UnavailableError):
        return []
    finally:
        await client.aclose()
