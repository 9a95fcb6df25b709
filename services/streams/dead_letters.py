"""Dead letters: entries that could not be read or finished, kept with the reason for a person to look at.

The stream is capped, so that a flood of bad entries cannot fill the memory of Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import redis
import redis.asyncio

from services.streams.connection import Keys
from services.streams.wire import Fields

MAX_DEAD_LETTERS = 10_000
"""About so many are kept, the newest."""
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1 << 16
"""Limits on what is kept of the entry's own fields."""

_RAW = b"raw."


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry that was set aside."""

    letter_id: str
    source: str
    """Stream it came from: "tasks" or "rollouts"."""
    entry_id: str
    """Its id in that stream."""
    reason: str
    generator_id: str
    """Who answered so, as the answer says; empty for what nobody answered."""
    fields: dict[bytes, bytes]
    """As they came, cut to MAX_FIELDS of MAX_FIELD_BYTES."""


def letter_fields(source: str, entry_id: bytes, fields: Fields, reason: str, generator_id: str = "") -> list[bytes]:
    """Alternating names and values for XADD."""
    flat = [b"source", source.encode(), b"entry_id", entry_id, b"reason", reason.encode(errors="replace")[:4096]]
    flat += [b"generator_id", generator_id.encode()] if generator_id else []
    for name, value in list(fields.items())[:MAX_FIELDS]:
        flat += [_RAW + name[:256], value[:MAX_FIELD_BYTES]]
    return flat


def read_dead_letters(client: redis.Redis, keys: Keys, count: int = 100) -> list[DeadLetter]:
    """The newest first."""
    return _letters(client.xrevrange(keys.dead_letters, count=count))


async def read_dead_letters_async(client: redis.asyncio.Redis, keys: Keys, count: int = 100) -> list[DeadLetter]:
    """As `read_dead_letters`."""
    return _letters(await client.xrevrange(keys.dead_letters, count=count))


def _letters(entries: Any) -> list[DeadLetter]:
    return [_letter(entry_id, fields) for entry_id, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)]


def _letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        letter_id=letter_id.decode(),
        source=fields.get(b"source", b"").decode(errors="replace"),
        entry_id=fields.get(b"entry_id", b"").decode(errors="replace"),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        generator_id=fields.get(b"generator_id", b"").decode(errors="replace"),
        fields={name[len(_RAW) :]: value for name, value in fields.items() if name.startswith(_RAW)},
    )
