"""Accounting of a part's wall time: it is always in exactly one state, so the shares add up to one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StateClock:
    """Seconds spent in each state since creation.

        clock = StateClock("starting")
        clock.enter("training")            # everything until now counts as starting
        with clock.during("publishing"):   # back to training afterwards
            ...
        clock.shares()                     # {"starting": 0.2, "training": 0.7, "publishing": 0.1}

    Safe to read from another thread. `now` is a monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, state: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._state = state
        self._since = now()

    @property
    def state(self) -> str:
        return self._state

    def enter(self, state: str) -> None:
        """Leave the current state for `state`."""
        with self._lock:
            now = self._now()
            self._seconds[self._state] = self._seconds.get(self._state, 0.0) + now - self._since
            self._state, self._since = state, now

    @contextmanager
    def during(self, state: str) -> Iterator[None]:
        """Be in `state` for the block, then return to the state before."""
        before = self._state
        self.enter(state)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Seconds per state, the current one included up to now."""
        with self._lock:
            seconds = dict(self._seconds)
            seconds[self._state] = seconds.get(self._state, 0.0) + self._now() - self._since
            return seconds

    def shares(self) -> dict[str, float]:
        """Seconds per state as shares of all wall time; they sum to one."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {state: value / total for state, value in seconds.items()} if total > 0 else {self._state: 1.0}


class Rate:
    """Events per second over a sliding window, for tokens/s. Safe to read from another thread."""

    def __init__(self, window_s: float = 10.0, *, now: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._now = now
        self._start = now()
        self._lock = threading.Lock()
        self._events: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        with self._lock:
            self._events.append((self._now(), count))

    def per_s(self) -> float:
        """Mean over the window, or over the time since the start while that is shorter."""
        now = self._now()
        with self._lock:
            self._events = [event for event in self._events if event[0] > now - self._window_s]
            total = sum(count for _, count in self._events)
        return total / max(min(self._window_s, now - self._start), 1e-3)
