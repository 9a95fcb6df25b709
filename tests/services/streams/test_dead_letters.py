"""Dead letters keep what a person needs to see of an entry, and no more than the limits."""

from __future__ import annotations

import redis

from services.streams.connection import Keys
from services.streams.dead_letters import MAX_FIELD_BYTES, MAX_FIELDS, letter_fields, read_dead_letters


def bury(client: redis.Redis, keys: Keys, reason: str, fields: dict[bytes, bytes]) -> None:
    flat = letter_fields("tasks", b"5-1", fields, reason)
    client.xadd(keys.dead_letters, dict(zip(flat[::2], flat[1::2], strict=True)))


def test_a_letter_is_read_back_as_it_was_set_aside(client: redis.Redis, keys: Keys) -> None:
    fields = {b"meta": b'{"task_id": 1}', b"source": b"its own field of that name", b"\xff": b"\x00\xff"}
    bury(client, keys, "not JSON", fields)
    [letter] = read_dead_letters(client, keys)
    assert (letter.source, letter.entry_id, letter.reason, letter.fields) == ("tasks", "5-1", "not JSON", fields)


def test_the_newest_come_first_up_to_the_count(client: redis.Redis, keys: Keys) -> None:
    for number in range(3):
        bury(client, keys, f"reason {number}", {})
    assert [letter.reason for letter in read_dead_letters(client, keys)] == ["reason 2", "reason 1", "reason 0"]
    assert [letter.reason for letter in read_dead_letters(client, keys, count=1)] == ["reason 2"]


def test_a_flood_in_one_entry_is_cut_off(client: redis.Redis, keys: Keys) -> None:
    many = {f"field {number:03d}".encode(): b"" for number in range(MAX_FIELDS + 3)}
    bury(client, keys, "r" * 5000, many)
    bury(client, keys, "\udcff", {b"n" * 300: b"v" * (MAX_FIELD_BYTES + 1)})
    long, wide = read_dead_letters(client, keys)
    assert wide.fields == dict(list(many.items())[:MAX_FIELDS])
    assert wide.reason == "r" * 4096
    assert long.fields == {b"n" * 256: b"v" * MAX_FIELD_BYTES}
    assert long.reason == "?", "what is no text does not stop the letter"
