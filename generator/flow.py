"""How many sequences an engine gets at once, and the slots that hold to it. Knows no engine, no queue and no task.

Too few leave the engine idle; too many fill its KV cache, and it throws sequences out to compute them again later.
Where the line runs depends on lengths that nobody knows beforehand, so it is found as TCP finds its own: additive
increase, multiplicative decrease (Chiu and Jain 1989; slow start and threshold as in RFC 5681).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from generator.engines.base import EngineLoad

HEADROOM = 0.9
"""Above this share of the KV cache in use no more sequences are let in: those that are there still grow."""
AHEAD = 0.25
"""Share of the limit that is fetched beyond it, one sequence at least, so that a slot is taken the moment it is free:
an engine whose answers end together would idle until as many are leased. The price: what waits here is kept from
another generator that has nothing to do, at the end of a round above all, for as long as a slot takes to become free.
"""
DECREASE = 0.75
"""What the limit is multiplied by when the engine preempts."""


class Flow:
    """The number of sequences to keep in the engine, between 1 and `ceiling`, from what the engine reports.

        flow = Flow(ceiling=64, fits=20)
        flow.observe(load)      # whenever a sequence has left the engine
        flow.limit              # so many may be in it now

    It starts with what `fits` at the greatest length. While the limit is what holds back the engine, every sequence
    that ends makes room for one more (so the limit doubles in the time of a response), and above the threshold, where
    the engine preempted last, for 1 / limit more. A preemption takes a quarter of the limit, once until those in
    excess have left.
    """

    def __init__(self, ceiling: int, fits: int) -> None:
        self._ceiling = float(ceiling)
        self._window = min(max(1.0, float(fits)), self._ceiling)
        self._threshold = self._ceiling
        self._preemptions = 0

    @property
    def limit(self) -> int:
        """Sequences that may be in the engine."""
        return int(self._window)

    def observe(self, load: EngineLoad) -> None:
        """Follow what the engine says."""
        inside = load.running + load.waiting
        if load.preemptions > self._preemptions:
            self._preemptions = load.preemptions
            if inside <= self._window:
                self._window = self._threshold = max(1.0, self._window * DECREASE)
        elif not is_full(load) and 2 * inside >= self._window:  # a limit that nothing comes near proves nothing
            step = 1.0 if self._window < self._threshold else 1.0 / self._window
            self._window = min(self._window + step, self._ceiling)

    def room(self, load: EngineLoad, outstanding: int) -> int:
        """Sequences to fetch now, with `outstanding` fetched and not finished; none while the engine is full."""
        wanted = self.limit + max(1, int(AHEAD * self.limit))
        return 0 if is_full(load) and outstanding else max(0, wanted - outstanding)


def is_full(load: EngineLoad) -> bool:
    """Whether one sequence more would wait, or push out another."""
    return load.waiting > 0 or load.cache_used >= HEADROOM


class Slots:
    """At most `limit` holders at once, in order of arrival, so that a long queue keeps nobody out for ever.

    Lowering the limit takes no slot away: it holds once enough have left.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.held = 0
        """Holders now."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot for the block; waits for it."""
        await self._take()
        try:
            yield
        finally:
            self._give_back()

    def resize(self, limit: int) -> None:
        """Another limit from now on."""
        self._limit = limit
        self._hand_on()

    async def _take(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._hand_on()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give_back()  # it had come, and nobody will use it
            raise

    def _give_back(self) -> None:
        self.held -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting and self.held < self._limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.held += 1
                turn.set_result(None)
