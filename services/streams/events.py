"""The run's one stream of events: published versions, audit lines, warnings.

log = AsyncEventLog(client, Keys("run-7"))
await log.append("services", "published", weight_version=3)
await log.read("0", block_s=0)                       # from the beginning
await log.read(await log.last_id(), block_s=30)      # waits for the next one

Generators, which may run where nobody watches, append to a stream of their own. The services take what is in it over
into the run's: no generator speaks in the name of another part, or drops what others wrote.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from pydantic import JsonValue, TypeAdapter
from pydantic_core import from_json

from services.errors import ContractError
from services.streams import scripts
from services.streams.connection import MAX_BLOCK_S, Keys, block_ms
from services.streams.fence import UNFENCED, Fence
from services.streams.wire import is_of_the_future

MAX_EVENTS = 10_000
"""About so many are kept, the newest."""
MALFORMED = "malformed"
"""Kind of an event that could not be read; readers skip it like any unknown kind."""

OF_THE_RUN = frozenset({"learner", "evaluator", "services", "supervisor"})
"""Sources that no generator can be."""
MAX_EVENT_BYTES = 1 << 16
"""Of a generator's event; longer ones become MALFORMED."""

_EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    id: str
    """Ascending; `read` takes it to continue after this event."""
    source: str
    """Part id of the sender."""
    kind: str
    fields: dict[str, Any]
    time_s: float
    """Unix seconds, by Redis's clock."""


class EventLog:
    """What the learner appends, from threads."""

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence = UNFENCED) -> None:
        self._client = client
        self._key = keys.events
        self._append = fence.script(client, keys, scripts.APPEND)

    def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        flat = [part for pair in _encode(source, kind, fields).items() for part in pair]
        added: Any = self._append([self._key], [MAX_EVENTS, *flat])
        return str(added.decode())

    def read_new(self, after_id: str, count: int = 1000) -> tuple[str, list[Event]]:
        """The id to go on from, and the events after `after_id`; with an empty one: from the newest on, so none yet."""
        if not after_id:
            entries: Any = self._client.xrevrange(self._key, count=1)
            return (str(entries[0][0].decode()) if entries else "0"), []
        events = _events(self._client.xread({self._key: after_id}, count=count))
        return (events[-1].id if events else after_id), events


class AsyncEventLog:
    """For everybody else, from event loops. `of_generator`: what is appended comes from a generator."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, *, of_generator: bool = False) -> None:
        self._client = client
        self._key = keys.events
        self._own = keys.generator_events if of_generator else keys.events

    async def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        event: Any = _encode(source, kind, fields)
        added: Any = await self._client.xadd(self._own, event, maxlen=MAX_EVENTS, approximate=True)
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
        entries: Any = await self._client.xrevrange(self._key, count=count)
        return [decode_event(entry_id, fields) for entry_id, fields in reversed(entries)]

    async def last_id(self) -> str:
        """Id to read from in order to see only later events."""
        entries: Any = await self._client.xrevrange(self._key, count=1)
        return str(entries[0][0].decode()) if entries else "0"


async def take_over_events_of_generators(client: redis.asyncio.Redis, keys: Keys) -> int:
    """Move what generators have appended into the run's events; waits a moment for some, returns how many it moved.

    An event that claims to be of another part, or that no release appends, is moved as MALFORMED.
    """
    untyped: Any = client
    streams = await untyped.xread({keys.generator_events: "0"}, count=256, block=block_ms(MAX_BLOCK_S))
    entries = [entry for _, found in streams or [] for entry in found]
    for entry_id, raw in entries:
        too_long = sum(len(name) + len(value) for name, value in raw.items()) > MAX_EVENT_BYTES
        event = decode_event(entry_id, {} if too_long else raw)
        if event.kind == MALFORMED or event.source in OF_THE_RUN:
            raw = _encode("", MALFORMED, {})
        pipe: Any = client.pipeline(transaction=True)  # a reader sees it in one of the two, never in both
        pipe.xadd(keys.events, raw, maxlen=MAX_EVENTS, approximate=True)
        pipe.xdel(keys.generator_events, entry_id)
        await pipe.execute()
    if entries and is_of_the_future(entries[-1][0]):
        await untyped.delete(keys.generator_events)  # behind such an id nobody could append
    return len(entries)


def check_event_id(event_id: str) -> None:
    """Raises ContractError unless `event_id` could be an event's: it may come from a browser's Last-Event-ID."""
    if not _EVENT_ID.fullmatch(event_id):
        raise ContractError(
            f"{event_id[:64]!r} is not the id of an event", hint='use "0", or the id of an event that was read'
        )


def _encode(source: str, kind: str, fields: dict[str, JsonValue]) -> dict[Any, Any]:
    return {b"source": source.encode(), b"kind": kind.encode(), b"fields": _JSON.dump_json(fields)}


def _events(streams: Any) -> list[Event]:
    return [decode_event(entry_id, fields) for _, entries in streams or [] for entry_id, fields in entries]


def decode_event(entry_id: bytes, raw: dict[bytes, bytes]) -> Event:
    """An entry of the stream; kind MALFORMED when it cannot be read."""
    event_id = entry_id.decode()
    time_s = int(event_id.partition("-")[0]) / 1000
    try:
        fields = from_json(raw[b"fields"])
        json.dumps(fields, allow_nan=False)  # also 1e999: no browser can read an infinite number
        source, kind = raw[b"source"].decode(), raw[b"kind"].decode()
    except (KeyError, ValueError):
        return Event(event_id, "", MALFORMED, {}, time_s)
    if not isinstance(fields, dict):
        return Event(event_id, source, MALFORMED, {}, time_s)
    return Event(event_id, source, kind, fields, time_s)
