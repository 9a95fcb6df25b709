"""Thousands of waiting requests: few looks at the disk, woken in waves, nobody forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services.api.change_notifier import ChangeNotifier
from services.api.version_watch import WAVE, VersionWatch
from services.api.weight_memory import Held, WeightMemory
from services.errors import WeightError
from tests.support.endpoint import open_store
from tests.support.generator_world import until
from tests.support.weight_samples import first_version, next_version

LONG_S = 60.0
MANY = 500


class CountingMemory:
    """Counts how often it is asked; raises `error` when there is one."""

    def __init__(self, memory: WeightMemory) -> None:
        self._memory = memory
        self.asked = 0
        self.error: Exception | None = None

    def was_asked(self, times: int) -> bool:
        return self.asked >= times

    async def newest(self) -> Held | None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return await self._memory.newest()


@pytest.fixture
def notifier() -> ChangeNotifier:
    return ChangeNotifier()


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    return CountingMemory(WeightMemory(open_store(tmp_path / "weights")))


@pytest.fixture
def watch(memory: Any, notifier: ChangeNotifier) -> VersionWatch:
    return VersionWatch(memory, notifier)


def wait_all(watch: VersionWatch, held: Held | None, number: int = MANY) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(watch.until_other(held, LONG_S)) for _ in range(number)]


async def test_a_notification_costs_one_look_however_many_wait(
    watch: VersionWatch, memory: Any, notifier: ChangeNotifier
) -> None:
    waiting = wait_all(watch, None)
    await until(partial(memory.was_asked, 1))
    began = asyncio.get_running_loop().time()
    for asked in range(1, 11):
        await until(partial(memory.was_asked, asked))
        notifier.notify()
    await until(partial(memory.was_asked, 11))
    seconds = asyncio.get_running_loop().time() - began
    assert memory.asked <= 11 + 1 + seconds, "one for each notification, and one a second"
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_all_are_woken_by_a_new_version_in_waves(
    watch: VersionWatch, memory: Any, notifier: ChangeNotifier, tmp_path: Path
) -> None:
    turn = 0
    woken: Counter[int] = Counter()

    async def wait() -> None:
        await watch.until_other(None, LONG_S)
        woken[turn] += 1

    waiting = [asyncio.create_task(wait()) for _ in range(MANY)]
    await until(partial(memory.was_asked, 1))
    open_store(tmp_path / "weights").publish(0, first_version())
    notifier.notify()
    async with asyncio.timeout(LONG_S):
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0)
            turn += 1
    assert woken.total() == MANY
    assert max(woken.values()) <= WAVE, "others have their turn between two waves"


async def test_a_version_that_came_before_the_wait_ends_it(watch: VersionWatch, memory: Any, tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights")
    store.publish(0, first_version())
    held = await memory.newest()
    store.publish(1, next_version(first_version(), 1))
    async with asyncio.timeout(LONG_S / 2):
        await watch.until_other(held, LONG_S)
        await watch.until_other(None, LONG_S)


async def test_who_holds_the_newest_waits_while_others_are_woken(
    watch: VersionWatch, memory: Any, tmp_path: Path
) -> None:
    open_store(tmp_path / "weights").publish(0, first_version())
    holding = asyncio.create_task(watch.until_other(await memory.newest(), LONG_S))
    await asyncio.gather(*wait_all(watch, None))
    assert not holding.done()
    holding.cancel()


async def test_a_wait_ends_with_its_time_and_with_the_app(watch: VersionWatch, notifier: ChangeNotifier) -> None:
    await watch.until_other(None, 0.01)
    waiting = wait_all(watch, None)
    await asyncio.sleep(0)
    notifier.close()
    async with asyncio.timeout(LONG_S / 2):
        await asyncio.gather(*waiting)
        await watch.until_other(None, LONG_S)


async def test_a_store_that_cannot_be_read_wakes_those_who_wait(
    watch: VersionWatch, memory: Any, notifier: ChangeNotifier
) -> None:
    """They ask themselves, and so each gets the error."""
    waiting = wait_all(watch, None)
    await until(partial(memory.was_asked, 1))
    memory.error = WeightError("damaged")
    notifier.notify()
    async with asyncio.timeout(LONG_S / 2):
        await asyncio.gather(*waiting)
