"""The run's Redis as the store by which torch's process groups connect.

torch's own store for several hosts listens on every interface without a password and unpickles what it gets. This one
needs the password of the run's Redis, and keeps bytes: the addresses of the ranks, and counters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import redis
from torch._C._distributed_c10d import Store

from services.errors import DeadlineError

POLL_S = (0.002, 0.05)
"""First and longest pause between two looks at a key that is not there yet."""

SWAP = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
"""


class Deadline:
    """Pauses that grow, until a time has passed."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds
        self._pause_s = POLL_S[0]

    def pause(self) -> bool:
        """True, at once, when the time has passed."""
        if time.monotonic() >= self._ends_at:
            return True
        time.sleep(self._pause_s)
        self._pause_s = min(POLL_S[1], 1.5 * self._pause_s)
        return False


class RedisStore(Store):
    """A store of `torch.distributed` in one hash of Redis. A wait ends by name after `deadline_s` at most."""

    def __init__(self, client: redis.Redis, key: str, deadline_s: float) -> None:
        super().__init__()
        self._client = client
        self._key = key
        self._deadline_s = deadline_s
        self._timeout = timedelta(seconds=deadline_s)

    def set(self, key: str, value: str) -> None:
        self._client.hset(self._key, key, value)

    def get(self, key: str) -> bytes:
        """The value, once it is there."""
        self.wait([key])
        found: Any = self._client.hget(self._key, key)
        return bytes(found)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def add(self, key: str, value: int) -> int:
        added: Any = self._client.hincrby(self._key, key, value)
        return int(added)

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        """Set it where it is absent and nothing is expected, or is as expected; the value that is there then."""
        if not expected_value:
            self._client.hsetnx(self._key, key, desired_value)
        else:
            self._client.eval(SWAP, 1, self._key, key, expected_value, desired_value)
        found: Any = self._client.hget(self._key, key)
        return bytes(found) if found is not None else expected_value.encode()

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there."""
        found: Any = self._client.hmget(self._key, list(keys))
        return all(value is not None for value in found)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """DeadlineError when they are not all there in time."""
        limit_s = min((timeout or self._timeout).total_seconds(), self._deadline_s)
        deadline = Deadline(limit_s)
        while not self.check(keys):
            if deadline.pause():
                raise DeadlineError(
                    "another rank",
                    f"it did not connect ({', '.join(keys)[:200]} is not in Redis)",
                    limit_s,
                    hint="the log of the rank that ended says why; the run resumes when it is started again",
                )

    def delete_key(self, key: str) -> bool:
        return bool(self._client.hdel(self._key, key))

    def num_keys(self) -> int:
        found: Any = self._client.hlen(self._key)
        return int(found)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    @property
    def timeout(self) -> timedelta:
        return self._timeout
