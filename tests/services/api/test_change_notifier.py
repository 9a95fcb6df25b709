"""Whoever waits for a change misses none, and nobody waits once the app shuts down."""

from __future__ import annotations

import asyncio

from services.api.change_notifier import ChangeNotifier

LONG_S = 60.0


async def test_all_waiters_are_woken_by_the_next_change() -> None:
    notifier = ChangeNotifier()
    change = notifier.next_change()
    waiting = [asyncio.create_task(notifier.wait(change, LONG_S)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    notifier.notify()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


async def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    notifier = ChangeNotifier()
    change = notifier.next_change()
    notifier.notify()
    async with asyncio.timeout(10):
        await notifier.wait(change, LONG_S)
    assert not notifier.next_change().is_set(), "one change is heard once"


async def test_a_wait_ends_with_its_time() -> None:
    notifier = ChangeNotifier()
    async with asyncio.timeout(10):
        await notifier.wait(notifier.next_change(), 0.01)


async def test_nobody_waits_once_it_is_closed() -> None:
    notifier = ChangeNotifier()
    waiting = asyncio.create_task(notifier.wait(notifier.next_change(), LONG_S))
    await asyncio.sleep(0)
    notifier.close()
    async with asyncio.timeout(10):
        await waiting
        await notifier.wait(notifier.next_change(), LONG_S)
    assert notifier.closed
