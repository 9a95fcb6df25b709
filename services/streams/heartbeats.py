"""The last heartbeat of every part.

Redis stamps each with its own clock, so an age does not depend on two machines agreeing on the time. Those of
generators are in a hash of their own: the learner's is nothing that a generator could write.
"""

from __future__ import annotations

import math
from typing import Any

import redis
import redis.asyncio
import structlog
from pydantic import ValidationError

from services.contracts import Heartbeat, Part
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
        self._beat([_hash_of(heartbeat, self._keys)], [heartbeat.part_id, heartbeat.model_dump_json()])

    def read_all(self) -> list[tuple[Heartbeat, float]]:
        """Every part's last heartbeat with its age in seconds, by part id; unreadable ones are removed and logged."""
        pipe: Any = self._client.pipeline(transaction=False)
        for key in _hashes(self._keys):
            pipe.hgetall(key)
        pipe.time()
        beats, unreadable = _decode(*pipe.execute())
        for key, part_ids in zip(_hashes(self._keys), unreadable, strict=True):
            if part_ids:
                self._client.hdel(key, *part_ids)
        return beats


class AsyncHeartbeats:
    """For everybody else, from event loops."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._beat = client.register_script(scripts.BEAT)

    async def send(self, heartbeat: Heartbeat) -> None:
        """Replaces the part's last heartbeat."""
        await self._beat([_hash_of(heartbeat, self._keys)], [heartbeat.part_id, heartbeat.model_dump_json()])

    async def read_all(self) -> list[tuple[Heartbeat, float]]:
        """Every part's last heartbeat with its age in seconds, by part id; unreadable ones are removed and logged."""
        pipe: Any = self._client.pipeline(transaction=False)
        for key in _hashes(self._keys):
            pipe.hgetall(key)
        pipe.time()
        beats, unreadable = _decode(*await pipe.execute())
        for key, part_ids in zip(_hashes(self._keys), unreadable, strict=True):
            if part_ids:
                await self._client.hdel(key, *part_ids)
        return beats

    async def forget(self, part_id: str) -> None:
        """Removes a generator that left, so that it is not shown as lost."""
        await self._client.hdel(self._keys.heartbeats, part_id)


def _hashes(keys: Keys) -> tuple[str, str]:
    return keys.heartbeats, keys.learner_heartbeats


def _hash_of(heartbeat: Heartbeat, keys: Keys) -> str:
    return keys.heartbeats if heartbeat.part is Part.GENERATOR else keys.learner_heartbeats


def _decode(
    of_generators: dict[bytes, bytes], of_others: dict[bytes, bytes], redis_time: tuple[int, int]
) -> tuple[list[tuple[Heartbeat, float]], tuple[list[bytes], list[bytes]]]:
    """Heartbeats with their ages by Redis' clock, and of each hash the part ids whose entries cannot be read."""
    now = redis_time[0] + redis_time[1] / 1e6
    beats: list[tuple[Heartbeat, float]] = []
    unreadable: tuple[list[bytes], list[bytes]] = ([], [])
    for stored, generators, rejected in ((of_generators, True, unreadable[0]), (of_others, False, unreadable[1])):
        for part_id, value in stored.items():
            sent_at, _, text = value.partition(b" ")
            try:
                beat = Heartbeat.model_validate_json(text)
                if (beat.part is Part.GENERATOR) != generators or beat.part_id.encode() != part_id:
                    raise ValueError(f"it claims to be of the {beat.part} {beat.part_id}")
                age_s = now - float(sent_at)
                if not math.isfinite(age_s):
                    raise ValueError(f"it was sent at {sent_at!r}")
                beats.append((beat, max(0.0, age_s)))
            except (ValidationError, ValueError) as error:
                log.warning("heartbeat_rejected", part_id=part_id.decode(errors="replace"), reason=str(error)[:500])
                rejected.append(part_id)
    return sorted(beats, key=lambda beat: beat[0].part_id), unreadable
