"""The run's events over HTTP: as they come, or the newest of a kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.api import events as events_module
from services.streams.events import AsyncEventLog
from tests.support.endpoint import Endpoint, served


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    async for line in lines:
        if line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return event
    raise AssertionError("the stream ended")


async def test_events_arrive_as_they_happen(endpoint: Endpoint) -> None:
    log = AsyncEventLog(endpoint.redis, endpoint.keys)
    await log.append("learner", "published", weight_version=1)
    async with (
        served(endpoint.app) as url,
        httpx.AsyncClient(base_url=url, timeout=10) as http,
        http.stream("GET", "/v1/events", params={"after": "0"}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert (await next_event(lines))["fields"] == {"weight_version": 1}
        await log.append("learner", "published", weight_version=2)
        assert (await next_event(lines))["fields"] == {"weight_version": 2}


@pytest.mark.parametrize("after", ["x", "1-2-3", "-1"])
async def test_events_after_something_that_is_no_event_are_refused(http: httpx.AsyncClient, after: str) -> None:
    assert (await http.get("/v1/events", params={"after": after})).status_code == 422


async def test_a_browser_goes_on_after_the_last_event_that_it_got(endpoint: Endpoint) -> None:
    """Whatever its address says: that is where it began."""
    log = AsyncEventLog(endpoint.redis, endpoint.keys)
    ids = [await log.append("learner", "step", number=number) for number in range(3)]
    async with (
        served(endpoint.app) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        http.stream("GET", "/v1/events", params={"after": "0"}, headers={"Last-Event-ID": ids[1]}) as answer,
    ):
        assert answer.headers["cache-control"] == "no-store"
        lines = answer.aiter_lines()
        assert await anext(lines) == f"id: {ids[2]}"
        event = await next_event(lines)
        assert event.pop("time_s") > 1e9
        assert event == {"source": "learner", "kind": "step", "fields": {"number": 2}}


async def test_without_a_place_only_what_comes_is_sent(endpoint: Endpoint) -> None:
    log = AsyncEventLog(endpoint.redis, endpoint.keys)
    await log.append("learner", "before")
    async with (
        served(endpoint.app) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        http.stream("GET", "/v1/events") as answer,
    ):
        await log.append("learner", "after")
        assert (await next_event(answer.aiter_lines()))["kind"] == "after"


async def test_streams_have_a_limit_and_one_that_ends_makes_room(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "MAX_STREAMS", 1)
    await AsyncEventLog(endpoint.redis, endpoint.keys).append("learner", "step")
    async with served(endpoint.app) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        async with http.stream("GET", "/v1/events", params={"after": "0"}) as answer:
            lines = answer.aiter_lines()
            await next_event(lines)
            for _ in range(2):  # a refusal takes no place
                refused = await http.get("/v1/events")
                assert (refused.status_code, refused.json()["error"]) == (503, "1 streams of events are open already")
        async with asyncio.timeout(30):
            while True:  # the server hears of the end on its own time
                async with http.stream("GET", "/v1/events", params={"after": "0"}) as answer:
                    if answer.status_code == 200:
                        assert (await next_event(answer.aiter_lines()))["kind"] == "step"
                        break


async def test_the_newest_of_a_kind_come_first_and_no_more_than_asked_for(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    log = AsyncEventLog(endpoint.redis, endpoint.keys)
    for number in range(6):
        await log.append("learner", ("even", "odd")[number % 2], number=number)

    async def numbers(**params: Any) -> list[int]:
        answer = await http.get("/v1/events/last", params=params)
        return [event["fields"]["number"] for event in answer.json()]

    assert await numbers() == [5, 4, 3, 2, 1, 0]
    assert await numbers(limit=2) == [5, 4]
    assert await numbers(kind="even") == [4, 2, 0]
    assert await numbers(kind="even", limit=2) == [4, 2], "the limit counts those of the kind"
    assert await numbers(kind="none") == []
    assert (await http.get("/v1/events/last", params={"limit": 0})).status_code == 422
    assert (await http.get("/v1/events/last", params={"limit": events_module.MAX_LAST})).status_code == 200
    assert (await http.get("/v1/events/last", params={"limit": events_module.MAX_LAST + 1})).status_code == 422
