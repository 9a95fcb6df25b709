"""Owns the run's one stream of events: published versions, audit lines, warnings; knows no meaning of any kind of them.

log = EventLog(client, Keys("run-7"))
log.append("learner", "published", weight_version=3)
log.read("0", block_s=0)          # from the beginning
log.read(log.last_id(), block_s=30)   # waits for the next one
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from pydantic import JsonValue, TypeAdapter
from pydantic_core import from_json

from services.errors import ContractError
from services.streams.connection import Keys, block_ms

MAX_EVENTS = 10_000
"""About so many are kept, the newest."""
MALFORMED = "malformed"
"""Kind of an event that could not be read; readers go past it like any other."""

_EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    id: str
    """Ascending; what `read` takes to go on from here."""
    source: str
    """Part id of who says so."""
    kind: str
    fields: dict[str, Any]
    time_s: float
    """Unix seconds, by Redis's clock."""


class EventLog:
    """For parts that live in threads."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._key = keys.events

    def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        added: Any = self._client.xadd(self._key, _encode(source, kind, fields), maxlen=MAX_EVENTS, approximate=True)
        return str(added.decode())

    def read(self, after_id: str, block_s: float, count: int = 256) -> list[Event]:
        """Events after `after_id` ("0": from the first), waiting at most `block_s` for one.

        Raises:
            ContractError: `after_id` is not the id of an event.
        """
        check_event_id(after_id)
        give_up_at = time.monotonic() + block_s
        while True:
            wait_s = give_up_at - time.monotonic()
            block = block_ms(wait_s) if wait_s > 0 else None
            events = _events(self._client.xread({self._key: after_id}, count=count, block=block))
            if events or time.monotonic() >= give_up_at:
                return events

    def tail(self, count: int) -> list[Event]:
        """The last `count` events, the oldest of them first."""
        return _tail(self._client.xrevrange(self._key, count=count))

    def last_id(self) -> str:
        """Where to read from to see only what is still to come."""
        return _last_id(self._client.xrevrange(self._key, count=1))


class AsyncEventLog:
    """For parts that live in an event loop; methods as those of EventLog."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._key = keys.events

    async def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        event: Any = _encode(source, kind, fields)
        added: Any = await self._client.xadd(self._key, event, maxlen=MAX_EVENTS, approximate=True)
        return str(added.decode())

    async def read(self, after_id: str, block_s: float, count: int = 256) -> list[Event]:
        """Events after `after_id` ("0": from the first), waiting at most `block_s` for one.

        Raises:
            ContractError: `after_id` is not the id of an event.
        """
        check_event_id(after_id)
        give_up_at = time.monotonic() + block_s
        while True:
            wait_s = give_up_at - time.monotonic()
            block = block_ms(wait_s) if wait_s > 0 else None
            events = _events(await self._client.xread({self._key: after_id}, count=count, block=block))
            if events or time.monotonic() >= give_up_at:
                return events

    async def tail(self, count: int) -> list[Event]:
        """The last `count` events, the oldest of them first."""
        return _tail(await self._client.xrevrange(self._key, count=count))

    async def last_id(self) -> str:
        """Where to read from to see only what is still to come."""
        return _last_id(await self._client.xrevrange(self._key, count=1))


def check_event_id(event_id: str) -> None:
    """Raises ContractError unless `event_id` could be an event's: it may come from a browser's Last-Event-ID."""
    if not _EVENT_ID.fullmatch(event_id):
        raise ContractError(
            f"{event_id[:64]!r} is not the id of an event", hint='use "0", or the id of an event that was read'
        )


def _encode(source: str, kind: str, fields: dict[str, JsonValue]) -> dict[Any, Any]:
    return {b"source": source.encode(), b"kind": kind.encode(), b"fields": _JSON.dump_json(fields)}


def _events(streams: Any) -> list[Event]:
    return [_decode(entry_id, fields) for _, entries in streams or [] for entry_id, fields in entries]


def _tail(entries: Any) -> list[Event]:
    return [_decode(entry_id, fields) for entry_id, fields in reversed(entries)]


def _last_id(entries: Any) -> str:
    return str(entries[0][0].decode()) if entries else "0"


def _decode(entry_id: bytes, raw: dict[bytes, bytes]) -> Event:
    event_id = entry_id.decode()
    time_s = int(event_id.partition("-")[0]) / 1000
    try:
        fields = from_json(raw[b"fields"])
        source, kind = raw[b"source"].decode(), raw[b"kind"].decode()
    except (KeyError, ValueError):
        return Event(event_id, "", MALFORMED, {}, time_s)
    if not isinstance(fields, dict):
        return Event(event_id, source, MALFORMED, {}, time_s)
    return Event(event_id, source, kind, fields, time_s)
