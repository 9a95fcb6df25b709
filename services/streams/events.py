"""The run's one stream of events: published versions, audit lines, warnings.

log = AsyncEventLog(client, Keys("run-7"))
await log.append("services", "published", weight_version=3)
await log.read("0", block_s=0)                       # from the beginning
await log.read(await log.last_id(), block_s=30)      # waits for the next one

What generators append is a stream of its own, which readers merge: they may run where nobody watches, and cannot write
in the name of another part, nor drop what others wrote.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
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
"""Kind of an event that could not be read; readers skip it like any unknown kind."""

OF_THE_RUN = frozenset({"learner", "evaluator", "services", "supervisor"})
"""Sources that no generator can be."""

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

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._key = keys.events

    def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        added: Any = self._client.xadd(self._key, _encode(source, kind, fields), maxlen=MAX_EVENTS, approximate=True)
        return str(added.decode())


class AsyncEventLog:
    """For everybody else, from event loops. `of_generator`: what is appended comes from a generator."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, *, of_generator: bool = False) -> None:
        # Any: redis-py types the replies of its asyncio commands as "value or awaitable".
        self._client: Any = client
        self._keys = keys
        self._own = keys.generator_events if of_generator else keys.events

    async def append(self, source: str, kind: str, **fields: JsonValue) -> str:
        """Adds an event and returns its id."""
        event = _encode(source, kind, fields)
        added = await self._client.xadd(self._own, event, maxlen=MAX_EVENTS, approximate=True)
        return str(added.decode())

    async def read(self, after_id: str, block_s: float, count: int = 256) -> list[Event]:
        """Events after `after_id` ("0": from the first), waiting at most `block_s` for one.

        Raises:
            ContractError: `after_id` is not the id of an event.
        """
        check_event_id(after_id)
        give_up_at = time.monotonic() + block_s
        places = {self._keys.events: after_id, self._keys.generator_events: after_id}
        while True:
            wait_s = give_up_at - time.monotonic()
            block = block_ms(wait_s) if wait_s > 0 else None
            streams = await self._client.xread(places, count=count, block=block)
            events = self._merged({name.decode(): entries for name, entries in streams or []}, count)
            if events or time.monotonic() >= give_up_at:
                return events

    async def tail(self, count: int) -> list[Event]:
        """The last `count` events, the oldest of them first."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.xrevrange(self._keys.events, count=count)
        pipe.xrevrange(self._keys.generator_events, count=count)
        ours, theirs = await pipe.execute()
        return self._merged({self._keys.events: ours, self._keys.generator_events: theirs})[-count:]

    async def last_id(self) -> str:
        """Id to read from in order to see only later events."""
        last = await self.tail(1)
        return last[0].id if last else "0"

    def _merged(self, streams: dict[str, Any], count: int | None = None) -> list[Event]:
        """By id. With `count`, which cut the streams off, only up to where each of them was read."""
        events = [decode_event(*entry) for entry in streams.get(self._keys.events, [])]
        events += [_of_generator(decode_event(*entry)) for entry in streams.get(self._keys.generator_events, [])]
        events.sort(key=lambda event: _order(event.id))
        cut_off = [_order(entries[-1][0].decode()) for entries in streams.values() if len(entries) == count]
        return [event for event in events if _order(event.id) <= min(cut_off)] if cut_off else events


def _of_generator(event: Event) -> Event:
    """As a generator may have sent it; MALFORMED when it claims to be of another part."""
    return replace(event, kind=MALFORMED, fields={}) if event.source in OF_THE_RUN else event


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def check_event_id(event_id: str) -> None:
    """Raises ContractError unless `event_id` could be an event's: it may come from a browser's Last-Event-ID."""
    if not _EVENT_ID.fullmatch(event_id):
        raise ContractError(
            f"{event_id[:64]!r} is not the id of an event", hint='use "0", or the id of an event that was read'
        )


def _encode(source: str, kind: str, fields: dict[str, JsonValue]) -> dict[Any, Any]:
    return {b"source": source.encode(), b"kind": kind.encode(), b"fields": _JSON.dump_json(fields)}


def decode_event(entry_id: bytes, raw: dict[bytes, bytes]) -> Event:
    """An entry of the stream; kind MALFORMED when it cannot be read."""
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
