"""The last heartbeat of every part.

Redis stamps each with its own clock, so an age does not depend on two machines agreeing on the time.
"""

from __future__ import annotations

import math
from typing import Any

import redis
import redis.asyncio
import structlog
from pydantic import ValidationError

from services.contracts import Heartbeat
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.fence import UNFENCED, Fence

HEARTBEAT_EVERY_S = 1.0
"""A part sends its heartbeat this often."""
LOST_AFTER_S = 5.0
"""A part whose last heartbeat is older counts as lost: four may be late or missing."""

log = structlog.get_logger()


class Heartbeats:
    """For the learner, from threads."""

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence = UNFENCED) -> None:
        self._client = client
        self._keys = keys
        self._beat = fence.script(client, keys, scripts.BEAT)

    def send(self, heartbeat: Heartbeat) -> None:
        """Replaces the part's last heartbeat."""
        self._beat([self._keys.heartbeats], [heartbeat.part_id, heartbeat.model_dump_json()])

    def read_all(self) -> list[tuple[Heartbeat, float]]:
        """Every part's last heartbeat with its age in seconds, by part id; unreadable ones are removed and logged."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hgetall(self._keys.heartbeats)
        pipe.time()
        beats, unreadable = _decode(*pipe.execute())
        if unreadable:
            self._client.hdel(self._keys.heartbeats, *unreadable)
        return beats


class AsyncHeartbeats:
    """For everybody else, from event loops."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._beat = client.register_script(scripts.BEAT)

    async def send(self, heartbeat: Heartbeat) -> None:
        """Replaces the part's last heartbeat."""
        await self._beat([self._keys.heartbeats], [heartbeat.part_id, heartbeat.model_dump_json()])

    async def read_all(self) -> list[tuple[Heartbeat, float]]:
        """Every part's last heartbeat with its age in seconds, by part id; unreadable ones are removed and logged."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hgetall(self._keys.heartbeats)
        pipe.time()
        beats, unreadable = _decode(*await pipe.execute())
        if unreadable:
            await self._client.hdel(self._keys.heartbeats, *unreadable)
        return beats

    async def forget(self, part_id: str) -> None:
        """Removes a part that left, so that it is not shown as lost."""
        await self._client.hdel(self._keys.heartbeats, part_id)


def _decode(
    stored: dict[bytes, bytes], redis_time: tuple[int, int]
) -> tuple[list[tuple[Heartbeat, float]], list[bytes]]:
    """Heartbeats with their ages by Redis' clock, and the part ids whose entries cannot be read."""
    now = redis_time[0] + redis_time[1] / 1e6
    beats, unreadable = [], []
    for part_id, value in sorted(stored.items()):
        sent_at, _, text = value.partition(b" ")
        try:
            age_s = now - float(sent_at)
            if not math.isfinite(age_s):
                raise ValueError(f"it was sent at {sent_at!r}")
            beats.append((Heartbeat.model_validate_json(text), max(0.0, age_s)))
        except (ValidationError, ValueError) as error:
            log.warning("heartbeat_rejected", part_id=part_id.decode(errors="replace"), reason=str(error)[:500])
            unreadable.append(part_id)
    return beats, unreadable
