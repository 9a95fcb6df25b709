"""How many sequences to keep in an engine, and the slots that enforce it.

Too few leave the engine idle. Too many fill its KV cache, and it evicts sequences to compute them again later. The
limit depends on lengths that are not known in advance, so it is found as TCP finds its own: additive increase,
multiplicative decrease (Chiu and Jain 1989; slow start and threshold as in RFC 5681).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from generator.engines.base import EngineLoad

HEADROOM = 0.9
"""Above this share of the KV cache in use no more sequences are admitted: those in the engine still grow."""
PREFETCH = 0.25
"""Share of the limit that is fetched beyond it, one sequence at least, so that a free slot is taken at once: an engine
whose responses end together would idle until as many tasks are leased. The price: what waits here is not available to
an idle generator, above all at the end of a round, for as long as a slot takes to become free.
"""
DECREASE = 0.75
"""Factor on the limit when the engine preempts."""


class Flow:
    """The number of sequences to keep in the engine, between 1 and `ceiling`, from what the engine reports.

        flow = Flow(ceiling=64, fits=20)
        flow.observe(load)      # whenever a sequence has left the engine
        flow.limit              # sequences that may be in it now

    It starts with what `fits` at the greatest length. While the limit is what keeps the engine from doing more, every
    sequence that ends raises the limit by one (so it doubles in the time of a response), and above the threshold, where
    the engine preempted last, by 1 / limit. A preemption lowers the limit by a quarter; no other preemption counts
    until the excess sequences have left.
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
        """Adapt the limit to the engine's load."""
        in_engine = load.running + load.waiting
        if load.preemptions > self._preemptions:
            self._preemptions = load.preemptions
            if in_engine <= self._window:
                self._window = self._threshold = max(1.0, self._window * DECREASE)
        elif not is_full(load) and 2 * in_engine >= self._window:  # far below the limit, no preemption proves nothing
            step = 1.0 if self._window < self._threshold else 1.0 / self._window
            self._window = min(self._window + step, self._ceiling)

    def fetchable(self, load: EngineLoad, outstanding: int) -> int:
        """Sequences to fetch now, with `outstanding` fetched and not finished; none while the engine is full.

        While the engine has no free place, they are fetched several at a time: when half of those ahead are used up.
        """
        ahead = max(1, int(PREFETCH * self.limit))
        missing = self.limit + ahead - outstanding
        if (is_full(load) and outstanding) or (outstanding >= self.limit and 2 * missing < ahead):
            return 0
        return max(0, missing)


def is_full(load: EngineLoad) -> bool:
    """Whether one more sequence would wait, or evict another."""
    return load.waiting > 0 or load.cache_used >= HEADROOM


class Slots:
    """A semaphore whose limit can change: at most `limit` holders, admitted in order of arrival.

    Lowering the limit interrupts no holder: it takes effect as holders leave.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.held = 0
        """Holders now."""

    @asynccontextmanager
    async def acquired(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the block."""
        await self._acquire()
        try:
            yield
        finally:
            self._release()

    def resize(self, limit: int) -> None:
        """Set another limit."""
        self._limit = limit
        self._admit()

    async def _acquire(self) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._waiters.append(admitted)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():
                self._release()  # admitted already, but cancelled before it could run
            raise

    def _release(self) -> None:
        self.held -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiters and self.held < self._limit:
            admitted = self._waiters.popleft()
            if not admitted.cancelled():
                self.held += 1
                admitted.set_result(None)
