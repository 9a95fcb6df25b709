"""Requests that wait for another version than they hold: one look at the disk for all of them, woken in waves."""

from __future__ import annotations

import asyncio
import contextlib

from services.api.change_notifier import ChangeNotifier
from services.api.weight_memory import Held, Identity, WeightMemory
from services.errors import SeptError

DISK_CHECK_S = 1.0
"""While requests wait the disk is looked at this often, so that a lost notification costs a second and not a poll."""
WAVE = 32
"""Requests that are woken at once. Between two waves the event loop serves others, so that ten thousand answers, which
take seconds together, hold up none of them."""

HeldKey = tuple[int, Identity] | None
Turn = asyncio.Future[None]


class VersionWatch:
    """Any number of waiting requests cost one look at the disk a second, and one for each notification."""

    def __init__(self, memory: WeightMemory, notifier: ChangeNotifier) -> None:
        self._memory = memory
        self._notifier = notifier
        self._waiting: dict[HeldKey, dict[Turn, None]] = {}
        """By what they hold; those of each in the order in which they came."""
        self._watching: asyncio.Task[None] | None = None

    async def until_other(self, held: Held | None, timeout_s: float) -> None:
        """Until the newest version may be another than `held`, at most `timeout_s`; not at all once the app ends."""
        if self._notifier.closed:
            return
        turn: Turn = asyncio.get_running_loop().create_future()
        key = _key(held)
        self._waiting.setdefault(key, {})[turn] = None
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await turn
        finally:
            self._forget(key, turn)

    async def _watch(self) -> None:
        while self._waiting:
            change = self._notifier.next_change()
            try:
                newest = _key(await self._memory.newest())
                outdated = [key for key in self._waiting if key != newest]
            except (SeptError, OSError):  # the requests ask again, and say so
                outdated = list(self._waiting)
            for key in list(self._waiting) if self._notifier.closed else outdated:
                await self._wake(key)
            await self._notifier.wait(change, DISK_CHECK_S)

    async def _wake(self, key: HeldKey) -> None:
        turns = list(self._waiting.get(key, ()))
        for start in range(0, len(turns), WAVE):
            for turn in turns[start : start + WAVE]:
                if not turn.done():
                    turn.set_result(None)
            await asyncio.sleep(0)

    def _forget(self, key: HeldKey, turn: Turn) -> None:
        turns = self._waiting[key]
        del turns[turn]
        if not turns:
            del self._waiting[key]


def _key(held: Held | None) -> HeldKey:
    return None if held is None else (held.manifest.weight_version, held.identity)
