"""The limit finds what an engine bears, and slots go round in order."""

from __future__ import annotations

import asyncio

import pytest

from generator.engines.base import EngineLoad
from generator.flow import DECREASE, Flow, Slots


def load(running: int = 0, *, waiting: int = 0, cache: float = 0.5, preemptions: int = 0) -> EngineLoad:
    return EngineLoad(running, waiting, cache, preemptions, fits=1)


def test_it_starts_with_what_surely_fits_below_the_ceiling() -> None:
    assert [Flow(64, fits).limit for fits in (0, 20, 1000)] == [1, 20, 64]


def test_the_limit_doubles_in_the_time_of_a_response_up_to_the_ceiling() -> None:
    flow = Flow(64, fits=8)
    for expected in (16, 32, 64, 64):
        for _ in range(flow.limit):
            flow.observe(load(flow.limit))
        assert flow.limit == expected


def test_it_stays_while_the_cache_is_full_or_requests_wait() -> None:
    flow = Flow(64, fits=8)
    for _ in range(20):
        flow.observe(load(8, cache=0.95))
        flow.observe(load(8, waiting=1))
    assert flow.limit == 8


def test_a_limit_that_nothing_comes_near_does_not_grow() -> None:
    flow = Flow(64, fits=8)
    for _ in range(100):
        flow.observe(load(3))
    assert flow.limit == 8


def test_a_preemption_takes_a_quarter_once_until_the_excess_has_left() -> None:
    flow = Flow(64, fits=64)
    flow.observe(load(40, waiting=24, preemptions=1))
    assert flow.limit == 48
    flow.observe(load(40, waiting=23, preemptions=5))
    assert flow.limit == 48, "these were let in under the old limit"
    flow.observe(load(40, waiting=8, preemptions=6))
    assert flow.limit == 36


def test_above_the_last_trouble_it_grows_by_one_a_response() -> None:
    flow = Flow(100, fits=64)
    flow.observe(load(64, preemptions=1))
    assert flow.limit == 48
    for _ in range(48 + 2):
        flow.observe(load(48, preemptions=1))
    assert flow.limit == 49


def test_it_never_falls_below_one() -> None:
    flow = Flow(4, fits=1)
    for preemptions in range(1, 9):
        flow.observe(load(1, preemptions=preemptions))
    assert flow.limit == 1


def test_room_is_what_the_limit_leaves_and_a_few_to_wait() -> None:
    flow = Flow(64, fits=8)
    assert flow.room(load(5), outstanding=5) == 5
    assert flow.room(load(8), outstanding=12) == 0
    assert flow.room(load(8), outstanding=8) == 2, "a quarter of the limit waits for the next slots"
    assert Flow(64, fits=1).room(load(1), outstanding=1) == 1, "one at least"
    assert flow.room(load(5, cache=0.95), outstanding=5) == 0
    assert flow.room(load(5, waiting=1), outstanding=5) == 0
    assert flow.room(load(0, cache=0.95), outstanding=0) == 10, "an engine without work cannot wait for room"


@pytest.mark.parametrize("bears", [5, 23, 60])
def test_the_limit_settles_where_the_engine_preempts(bears: int) -> None:
    """An engine that preempts whenever it holds more than it bears: from three quarters of that to one more."""
    flow, preemptions, limits = Flow(64, fits=1), 0, []
    for _ in range(5000):
        preemptions += flow.limit > bears
        flow.observe(load(flow.limit, preemptions=preemptions))
        limits.append(flow.limit)
    assert int(bears * DECREASE) <= min(limits[1000:]) and max(limits[1000:]) <= bears + 1


async def test_slots_go_round_in_order_and_follow_the_limit() -> None:
    slots, order = Slots(1), []
    gates = [asyncio.Event() for _ in range(4)]

    async def hold(number: int) -> None:
        async with slots.one():
            order.append(number)
            await gates[number].wait()

    holders = [asyncio.create_task(hold(number)) for number in range(4)]
    await turns()
    assert (order, slots.held) == ([0], 1)
    slots.resize(3)
    await turns()
    assert order == [0, 1, 2]
    slots.resize(1)
    gates[0].set()
    await turns()
    assert slots.held == 2, "those inside stay, nobody is let in"
    for gate in gates:
        gate.set()
    await asyncio.gather(*holders)
    assert (order, slots.held) == ([0, 1, 2, 3], 0)


@pytest.mark.parametrize("in_its_turn", [False, True])
async def test_one_who_is_cancelled_while_waiting_takes_no_slot_along(in_its_turn: bool) -> None:
    slots = Slots(1)
    async with slots.one():
        waiting = asyncio.create_task(hold_once(slots))
        await turns()
        if not in_its_turn:
            waiting.cancel()
            await turns()
    waiting.cancel()  # handed the slot a moment ago, it has not woken yet
    await turns()
    assert waiting.cancelled() and slots.held == 0
    await asyncio.wait_for(hold_once(slots), 1)


async def hold_once(slots: Slots) -> None:
    async with slots.one():
        pass


async def turns() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)
