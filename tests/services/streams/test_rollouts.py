"""Reading rollouts: once per pass, again after a rewind, gone after a delete."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from services.contracts import Rollout
from services.streams.connection import Keys
from services.streams.dead_letters import read_dead_letters
from services.streams.rollouts import DELETE_CHUNK, RolloutReader
from services.streams.wire import encode_rollout
from tests.support.stream_builders import make_rollouts, make_task


@pytest.fixture
def reader(client: redis.Redis, keys: Keys) -> RolloutReader:
    return RolloutReader(client, keys)


def add(client: redis.Redis, keys: Keys, index: int) -> None:
    [rollout] = make_rollouts(make_task(index))
    client.xadd(keys.rollouts, dict(encode_rollout(rollout).items()))


def indexes(reader: RolloutReader, count: int = 256) -> list[int]:
    return [rollout.position for _, rollout in reader.read(0, count)]


def test_each_rollout_is_read_once_in_order(client: redis.Redis, keys: Keys, reader: RolloutReader) -> None:
    for index in range(5):
        add(client, keys, index)
    assert indexes(reader, 3) == [0, 1, 2]
    assert indexes(reader, 3) == [3, 4]
    assert indexes(reader, 3) == []


def test_only_deleted_rollouts_are_missing_after_a_rewind(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    for index in range(4):
        add(client, keys, index)
    read = reader.read(0)
    reader.delete([entry_id for entry_id, _ in read[:2]])
    reader.delete([])
    reader.rewind()
    assert indexes(reader) == [2, 3]
    assert indexes(RolloutReader(client, keys)) == [2, 3]


def test_reading_waits_for_the_next_rollout(client: redis.Redis, keys: Keys, reader: RolloutReader) -> None:
    sender = threading.Thread(target=add, args=(client, keys, 7))
    sender.start()
    [(_, rollout)] = reader.read(block_s=60)
    sender.join()
    assert rollout.position == 7


def test_reading_waits_at_redis_for_as_long_as_it_may_and_then_ends_with_nothing(
    client: redis.Redis, reader: RolloutReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a loop: the learner's process trains meanwhile."""
    blocks: list[int | None] = []
    xread = client.xread

    def recorded(streams: Any, count: int, block: int | None) -> Any:
        blocks.append(block)
        return xread(streams, count=count, block=block)

    monkeypatch.setattr(client, "xread", recorded)
    began = time.monotonic()
    assert reader.read(block_s=0.2) == []
    assert time.monotonic() - began >= 0.2
    waits = [block for block in blocks if block is not None]
    assert all(0 < block <= 200 for block in waits)
    assert sum(waits) >= 200
    assert len(blocks) <= len(waits) + 1, "one look at the end"
    blocks.clear()
    assert reader.read(block_s=0) == []
    assert blocks == [None]


def test_an_unreadable_rollout_becomes_a_dead_letter_and_the_rest_goes_on(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    bad = client.xadd(keys.rollouts, {b"meta": b"{}", b"prompt": b"", b"response": b""})
    add(client, keys, 1)
    assert indexes(reader, 1) == [1]
    [letter] = read_dead_letters(client, keys)
    assert (letter.source, letter.entry_id.encode()) == ("rollouts", bad)
    assert "rollout is malformed" in letter.reason
    reader.rewind()
    assert indexes(reader) == [1]
    assert len(read_dead_letters(client, keys)) == 1


def test_an_unreadable_rollout_that_two_readers_meet_is_one_dead_letter(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    bad = client.xadd(keys.rollouts, {b"meta": b"{}"})
    entries: Any = client.xrange(keys.rollouts)
    [(_, fields)] = entries
    assert reader.read(0) == []
    assert reader._decode(bad, fields) is None  # type: ignore[arg-type]
    assert len(read_dead_letters(client, keys)) == 1


def test_more_rollouts_than_one_command_takes_are_deleted(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    pipe = client.pipeline(transaction=False)
    for _ in range(2 * DELETE_CHUNK + 1):
        pipe.xadd(keys.rollouts, {b"x": b""})
    entry_ids = pipe.execute()
    statistics: Any = client.info("commandstats")
    before = statistics["cmdstat_xdel"]["calls"] if "cmdstat_xdel" in statistics else 0
    reader.delete(entry_ids[:-1])
    assert client.xlen(keys.rollouts) == 1
    statistics = client.info("commandstats")
    assert statistics["cmdstat_xdel"]["calls"] - before == 2


def test_a_read_takes_so_many_at_most_and_the_next_goes_on(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    pipe = client.pipeline(transaction=False)
    for index in range(257):
        [rollout] = make_rollouts(make_task(index))
        pipe.xadd(keys.rollouts, dict(encode_rollout(rollout).items()))
    pipe.execute()
    assert indexes(reader, 256) == list(range(256)) == [rollout.position for _, rollout in second_look(client, keys)]
    assert indexes(reader) == [256]


def second_look(client: redis.Redis, keys: Keys) -> list[tuple[bytes, Rollout]]:
    """What another reader takes at once."""
    return RolloutReader(client, keys).read(0)


def test_what_does_not_answer_its_task_is_set_aside_with_its_generators_name(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    add(client, keys, 1)
    add(client, keys, 2)
    (entry_id, rollout), (other, _) = reader.read(0)
    for _ in range(2):  # of two who bury it one does
        reader.bury(entry_id, rollout, "its prompt is another")
    [letter] = read_dead_letters(client, keys)
    assert (letter.source, letter.entry_id.encode(), letter.reason) == ("rollouts", entry_id, "its prompt is another")
    assert (letter.generator_id, letter.fields) == (rollout.generator_id, encode_rollout(rollout))
    assert [found for found, _ in second_look(client, keys)] == [other]


def test_an_unreadable_rollout_is_set_aside_as_it_came_and_in_nobodys_name(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    fields = {b"meta": b'{"generator_id": "somebody-else"}', b"prompt": b"1", b"response": b""}
    client.xadd(keys.rollouts, dict(fields.items()))
    assert reader.read(0) == []
    [letter] = read_dead_letters(client, keys)
    assert (letter.generator_id, letter.fields) == ("", fields)


def test_a_wait_outlasts_what_cannot_be_read(client: redis.Redis, keys: Keys, reader: RolloutReader) -> None:
    client.xadd(keys.rollouts, {b"x": b""})
    sender = threading.Thread(target=add, args=(client, keys, 7))
    sender.start()
    assert [rollout.position for _, rollout in reader.read(block_s=60)] == [7]
    sender.join()


def test_an_entry_of_the_far_future_hides_nothing_and_keeps_nobody_from_handing_in(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    """No entry can be added behind the last id that there is."""
    add(client, keys, 1)
    [rollout] = make_rollouts(make_task(2))
    client.xadd(keys.rollouts, dict(encode_rollout(rollout).items()), id="18446744073709551615-18446744073709551615")
    assert indexes(reader) == [1]
    add(client, keys, 3)
    assert indexes(reader) == [3]
