"""The limit adapts to what fits the engine, and slots are given in order of arrival."""

from __future__ import annotations

import asyncio

import pytest

from generator.engines.base import EngineLoad
from generator.flow import DECREASE, Flow, Slots


def load(running: int = 0, *, waiting: int = 0, cache: float = 0.5, preemptions: int = 0) -> EngineLoad:
    return EngineLoad(running, waiting, cache, preemptions, fits=1)


def test_it_starts_with_what_fits_at_the_greatest_length_up_to_the_ceiling() -> None:
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


def test_a_limit_that_is_far_from_reached_does_not_grow() -> None:
    flow = Flow(64, fits=8)
    for _ in range(100):
        flow.observe(load(3))
    assert flow.limit == 8


def test_a_preemption_lowers_the_limit_by_a_quarter_once_until_the_excess_has_left() -> None:
    flow = Flow(64, fits=64)
    flow.observe(load(40, waiting=24, preemptions=1))
    assert flow.limit == 48
    flow.observe(load(40, waiting=23, preemptions=5))
    assert flow.limit == 48, "these were admitted under the old limit"
    flow.observe(load(40, waiting=8, preemptions=5))
    assert flow.limit == 48, "those preemptions are not counted later"
    flow.observe(load(40, waiting=8, preemptions=6))
    assert flow.limit == 36


def test_above_the_last_preemption_it_grows_by_one_in_the_time_of_a_response() -> None:
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


def test_what_is_fetchable_is_the_free_part_of_the_limit_and_a_quarter_more() -> None:
    flow = Flow(64, fits=8)
    assert flow.fetchable(load(5), outstanding=5) == 5
    assert flow.fetchable(load(8), outstanding=12) == 0
    assert flow.fetchable(load(8), outstanding=8) == 2, "a quarter of the limit waits for the next slots"
    assert Flow(64, fits=1).fetchable(load(1), outstanding=1) == 1, "one at least"
    assert flow.fetchable(load(5, cache=0.95), outstanding=5) == 0
    assert flow.fetchable(load(5, waiting=1), outstanding=5) == 0
    assert flow.fetchable(load(0, cache=0.95), outstanding=0) == 10, "an idle engine will not free any cache"


def test_those_ahead_are_fetched_several_at_a_time_and_a_free_place_is_filled_at_once() -> None:
    flow = Flow(64, fits=64)
    assert [flow.fetchable(load(64), outstanding=outstanding) for outstanding in (80, 73, 72, 64)] == [0, 0, 8, 16]
    assert flow.fetchable(load(63), outstanding=63) == 17


@pytest.mark.parametrize("capacity", [5, 23, 60])
def test_the_limit_settles_where_the_engine_preempts(capacity: int) -> None:
    """For an engine that preempts above its capacity: between three quarters of that and one more."""
    flow, preemptions, limits = Flow(64, fits=1), 0, []
    for _ in range(5000):
        preemptions += flow.limit > capacity
        flow.observe(load(flow.limit, preemptions=preemptions))
        limits.append(flow.limit)
    assert int(capacity * DECREASE) <= min(limits[1000:]) and max(limits[1000:]) <= capacity + 1


async def test_slots_are_given_in_order_and_follow_the_limit() -> None:
    slots, order = Slots(1), []
    gates = [asyncio.Event() for _ in range(4)]

    async def hold(number: int) -> None:
        async with slots.acquired():
            order.append(number)
            await gates[number].wait()

    holders = [asyncio.create_task(hold(number)) for number in range(4)]
    await run_tasks()
    assert (order, slots.held) == ([0], 1)
    slots.resize(3)
    await run_tasks()
    assert order == [0, 1, 2]
    slots.resize(1)
    gates[0].set()
    await run_tasks()
    assert slots.held == 2, "holders keep their slots, and nobody is admitted"
    for gate in gates:
        gate.set()
    await asyncio.gather(*holders)
    assert (order, slots.held) == ([0, 1, 2, 3], 0)


@pytest.mark.parametrize("admitted", [False, True])
async def test_a_cancelled_waiter_keeps_no_slot(admitted: bool) -> None:
    slots = Slots(1)
    async with slots.acquired():
        waiting = asyncio.create_task(hold_once(slots))
        await run_tasks()
        if not admitted:
            waiting.cancel()
            await run_tasks()
    waiting.cancel()  # admitted a moment ago, it has not run yet
    await run_tasks()
    assert waiting.cancelled() and slots.held == 0
    await asyncio.wait_for(hold_once(slots), 1)


async def hold_once(slots: Slots) -> None:
    async with slots.acquired():
        pass


async def run_tasks() -> None:
    """Run every task until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
