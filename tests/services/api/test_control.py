"""Wishes arrive in Redis and leave an audit line each."""

from __future__ import annotations

import httpx
import pytest

from services.streams.control import MAX_GENERATORS, AsyncControl, ControlState
from services.streams.events import AsyncEventLog
from tests.services.endpoint import Endpoint


async def test_wishes_are_noted_and_audited(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    control = AsyncControl(endpoint.redis, endpoint.keys)
    assert (await http.post("/v1/control/pause")).json()["paused"] is True
    assert (await http.post("/v1/control/stop")).json()["stop_after_round"] is True
    assert (await http.post("/v1/control/generators", json={"count": 3})).json()["desired_generators"] == 3
    assert await control.state() == ControlState(desired_generators=3, paused=True, stop_after_round=True)
    await http.post("/v1/control/resume")
    assert await control.state() == ControlState(desired_generators=3)
    audit = await AsyncEventLog(endpoint.redis, endpoint.keys).tail(10)
    assert [(event.kind, event.fields["action"]) for event in audit] == [
        ("control", "pause"),
        ("control", "stop"),
        ("control", "generators"),
        ("control", "resume"),
    ]
    assert audit[2].fields == {"action": "generators", "client": "127.0.0.1", "count": 3}


@pytest.mark.parametrize(
    "body",
    [b"", b"3", b'{"count": -1}', b'{"count": 1.5}', b'{"count": "3"}', b'{"count": NaN}', b'{"count": 1, "x": 2}'],
)
async def test_a_count_that_is_none_is_refused(endpoint: Endpoint, http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/control/generators", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert (await AsyncControl(endpoint.redis, endpoint.keys).state()).desired_generators is None


async def test_a_slip_of_the_finger_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/control/generators", json={"count": MAX_GENERATORS + 1})
    assert answer.status_code == 422
