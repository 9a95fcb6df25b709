"""Hosts of one learner meet, notice who is lost, and refuse by name whoever does not belong."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from services.errors import ConfigError, DeadlineError, SeptError, UnavailableError
from services.streams import nodes
from services.streams.connection import Keys
from services.streams.nodes import LOST_AFTER_BEATS, Ending, Membership, NodeCard, NodeMeeting, Start

KEYS = Keys("run-7")
PATIENCE_S, SHORT_S = 20.0, 0.5


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def card(node: int, **changes: Any) -> NodeCard:
    values = {
        "id": secrets.token_hex(8),
        "node": node,
        "nodes": 2,
        "ranks": 4,
        "release": "1.0+aa",
        "settings": {"training": "t"},
        "host": f"host-{node}",
        "pid": 7,
        "address": f"10.0.0.{node}",
    }
    return NodeCard.model_validate(values | changes)


def meet(client: redis.Redis, *cards: NodeCard, deadline_s: float = PATIENCE_S) -> list[Start | SeptError]:
    def join(mine: NodeCard) -> Start | SeptError:
        try:
            return NodeMeeting(client, KEYS, mine, deadline_s=deadline_s).join()
        except SeptError as error:
            return error

    with ThreadPoolExecutor(len(cards)) as pool:
        return list(pool.map(join, cards))


def started(client: redis.Redis, *cards: NodeCard) -> tuple[Start, list[Membership]]:
    first, *others = meet(client, *cards)
    assert isinstance(first, Start)
    assert others == [first] * len(others)
    return first, [Membership(client, KEYS, mine, first) for mine in cards]


def test_all_nodes_get_the_same_start_and_every_start_is_new(client: redis.Redis) -> None:
    first, members = started(client, card(0), card(1))
    for member in members:
        member.leave()
    again, _ = started(client, card(0), card(1))
    assert first.addresses == ["10.0.0.0", "10.0.0.1"]
    assert client.get(f"{KEYS.ranks}:current") == again.nonce.encode() != first.nonce.encode()


def test_the_only_node_starts_at_once(client: redis.Redis) -> None:
    start, (member,) = started(client, card(0, nodes=1))
    assert [member.beat() for _ in range(LOST_AFTER_BEATS + 1)] == [None] * (LOST_AFTER_BEATS + 1)
    assert start.addresses == ["10.0.0.0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"release": "1.0+bb"}, r"its release is 1\.0\+bb, that of node 0 \(host-0, process 7\) is 1\.0\+aa"),
        ({"nodes": 3}, "its nodes is 3"),
        ({"ranks": 8}, "its ranks is 8"),
        ({"settings": {"training": "u", "model": "m"}}, r"\[model\], \[training\] are not those"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_and_node_0_says_why_nobody_came(
    client: redis.Redis, changes: dict[str, Any], said: str
) -> None:
    leader, refused = meet(client, card(0), card(1, **changes), deadline_s=0.6)
    assert isinstance(refused, ConfigError)
    assert isinstance(leader, DeadlineError)
    for error in (refused, leader):
        with pytest.raises(SeptError, match=said):
            raise error


def test_a_place_that_is_taken_is_refused_by_name(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    started(client, card(0), card(1))
    monkeypatch.setattr(nodes, "CLAIM_S", SHORT_S)
    client.persist(f"{KEYS.ranks}:node:1")  # as a launcher does that lives
    (found,) = meet(client, card(1))
    assert isinstance(found, UnavailableError)
    assert "node 1 of 2 is taken: node 1 (host-1, process 7)" in found.message


def test_a_launcher_that_was_killed_frees_its_place(client: redis.Redis) -> None:
    started(client, card(0), card(1))
    client.pexpire(f"{KEYS.ranks}:node:1", 300)
    members = meet(client, card(0), card(1))
    assert members[0] == members[1]


def test_something_else_in_a_place_is_not_waited_for_in_silence(client: redis.Redis) -> None:
    client.set(f"{KEYS.ranks}:asking:1", b"\x80\x04pickled")
    (found,) = meet(client, card(0), deadline_s=SHORT_S)
    assert isinstance(found, DeadlineError)
    assert "node 1 was refused: the card of node 1 is not what this release writes" in found.message


def test_a_node_that_never_comes_is_named(client: redis.Redis) -> None:
    (leader,) = meet(client, card(0, nodes=3), deadline_s=SHORT_S)
    assert "waited 0.5 s for node 1, node 2" in str(leader)
    (other,) = meet(client, card(1), deadline_s=SHORT_S)
    assert "waited 0.5 s for node 0" in str(other)


def test_a_silent_node_is_lost_after_so_many_beats_of_the_others(client: redis.Redis) -> None:
    _, (first, second) = started(client, card(0), card(1))
    for _ in range(2 * LOST_AFTER_BEATS):
        assert first.beat() is None and second.beat() is None
    beats = [first.beat() for _ in range(LOST_AFTER_BEATS + 1)]
    assert beats[: LOST_AFTER_BEATS - 1] == [None] * (LOST_AFTER_BEATS - 1)
    assert beats[-1] == Ending("node 1 at 10.0.0.1 is silent for 8 s: lost", None)


def test_how_a_node_ended_is_told_by_the_first_that_did(client: redis.Redis) -> None:
    _, (first, second) = started(client, card(0), card(1))
    second.end(137, "rank 3 was killed")
    first.end(5, "rank 0 has lost another rank")
    assert first.beat() == second.beat() == Ending("node 1 ended: rank 3 was killed", 137)


def test_a_newer_start_ends_this_one(client: redis.Redis) -> None:
    _, (first, _) = started(client, card(0), card(1))
    client.set(f"{KEYS.ranks}:current", "newer")
    assert first.beat() == Ending("node 0 has begun a newer start", None)


def test_a_launcher_whose_place_was_taken_over_knows_it(client: redis.Redis) -> None:
    _, (_, second) = started(client, card(0), card(1))
    client.set(f"{KEYS.ranks}:node:1", "somebody else")
    found = second.beat()
    assert found is not None and "another launcher has taken the place of node 1" in found.reason
    second.leave()
    assert client.get(f"{KEYS.ranks}:node:1") == b"somebody else"


def test_a_redis_that_came_back_empty_makes_nobody_lost(client: redis.Redis) -> None:
    _, members = started(client, card(0), card(1))
    for _ in range(3):
        assert [member.beat() for member in members] == [None, None]
    client.flushall()
    for _ in range(LOST_AFTER_BEATS + 1):
        assert [member.beat() for member in members] == [None, None]


def test_any_node_may_ask_for_an_orderly_stop(client: redis.Redis) -> None:
    _, (first, second) = started(client, card(0), card(1))
    first.beat()
    assert not first.stop_requested
    second.request_stop()
    first.beat()
    assert first.stop_requested
