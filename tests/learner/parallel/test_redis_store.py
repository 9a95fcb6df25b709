"""The store of torch's process groups keeps torch's contract, in one hash of Redis."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from torch._C._distributed_c10d import HashStore, Store

from learner.parallel.redis_store import RedisStore
from services.errors import DeadlineError

SHORT_S = 0.2


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "torch"])
def store(request: pytest.FixtureRequest, client: redis.Redis) -> Store:
    """Ours, and torch's own of one process: what holds here is torch's contract."""
    if request.param == "torch":
        return HashStore()
    return RedisStore(client, "store", 20.0)


def test_values_are_kept(store: Store) -> None:
    store.set("a", "1")
    assert store.get("a") == b"1"
    store.set("a", "2")
    assert store.get("a") == b"2"
    assert store.check(["a"]) and not store.check(["a", "b"])
    assert store.delete_key("a") and not store.delete_key("a")
    assert not store.check(["a"])


def test_counters_grow(store: Store) -> None:
    assert [store.add("n", 1), store.add("n", 4)] == [1, 5]
    assert store.get("n") == b"5"


def test_a_value_is_swapped_only_if_it_is_as_expected(store: Store) -> None:
    assert store.compare_set("a", "", "1") == b"1"
    assert store.compare_set("a", "0", "2") == b"1"
    assert store.compare_set("a", "1", "2") == b"2"
    assert store.get("a") == b"2"


def test_a_get_waits_for_the_value(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "late")
        store.set("late", "there")
        assert waiting.result() == b"there"


def test_a_wait_ends_at_its_timeout_or_at_the_deadline(client: redis.Redis) -> None:
    store = RedisStore(client, "store", 20.0)
    with pytest.raises(DeadlineError, match=r"waited 0\.2 s for another rank: .*0//cpu//1"):
        store.wait(["0//cpu//1"], timedelta(seconds=SHORT_S))
    store = RedisStore(client, "store", SHORT_S)
    store.set_timeout(timedelta(days=1))
    with pytest.raises(DeadlineError, match="another rank"):
        store.get("never")


def test_all_is_in_one_hash(client: redis.Redis) -> None:
    store = RedisStore(client, "store", 20.0)
    store.set("a", "1")
    store.add("b", 2)
    assert client.keys("*") == [b"store"]
    assert store.num_keys() == 2
