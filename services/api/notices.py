"""Wakes the requests that wait for news. Knows neither what the news is nor where it comes from."""

from __future__ import annotations

import asyncio


class Notices:
    """Any number of waiters, all woken by the next `wake`.

    upcoming = notices.upcoming()            # first
    ... look whether the news is there ...   # then look
    await notices.wait(upcoming, 5.0)        # nothing that came in between is missed
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        """Everyone who waits looks again."""
        self._next.set()
        self._next = asyncio.Event()

    def close(self) -> None:
        """The app is going down: nobody waits from here on."""
        self.closed = True
        self.wake()

    def upcoming(self) -> asyncio.Event:
        """The next `wake`, to be taken before looking."""
        return self._next

    async def wait(self, upcoming: asyncio.Event, timeout_s: float) -> None:
        """Until that `wake`, at most `timeout_s`; at once when the app is going down."""
        if self.closed:
            return
        try:
            await asyncio.wait_for(upcoming.wait(), timeout_s)
        except TimeoutError:
            return
