"""Wakes the requests that wait until something has changed."""

from __future__ import annotations

import asyncio


class ChangeNotifier:
    """Any number of waiters, all woken by the next `notify`.

    change = notifier.next_change()          # first
    ... look whether it is there already ... # then look
    await notifier.wait(change, 5.0)         # nothing that came in between is missed
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self.closed = False

    def notify(self) -> None:
        """Something has changed: all waiters look again."""
        self._next.set()
        self._next = asyncio.Event()

    def close(self) -> None:
        """The app is shutting down: nobody waits from here on."""
        self.closed = True
        self.notify()

    def next_change(self) -> asyncio.Event:
        """Set by the next `notify`; take it before looking."""
        return self._next

    async def wait(self, change: asyncio.Event, timeout_s: float) -> None:
        """Until that change, at most `timeout_s`; returns at once when the app is shutting down."""
        if self.closed:
            return
        try:
            await asyncio.wait_for(change.wait(), timeout_s)
        except TimeoutError:
            return
