"""ControlRequests arrive in Redis and leave an audit line each."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from services.contracts import Part
from services.streams.control import MAX_GENERATORS, AsyncControl, ControlState
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.tensors import RawTensor
from tests.support.endpoint import Endpoint
from tests.support.heartbeats import heartbeat


async def test_requests_are_recorded_and_audited(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    control = AsyncControl(endpoint.redis, endpoint.keys)
    assert (await http.post("/v1/control/pause")).json()["paused"] is True
    assert (await http.post("/v1/control/stop")).json()["stop_after_round"] is True
    assert (await http.post("/v1/control/generators", json={"generators_target": 3})).json()["generators_target"] == 3
    assert await control.state() == ControlState(generators_target=3, paused=True, stop_after_round=True)
    await http.post("/v1/control/resume")
    assert await control.state() == ControlState(generators_target=3)
    audit = await AsyncEventLog(endpoint.redis, endpoint.keys).tail(10)
    assert [(event.kind, event.fields["action"]) for event in audit] == [
        ("control", "pause"),
        ("control", "stop"),
        ("control", "generators"),
        ("control", "resume"),
    ]
    assert audit[2].fields == {"action": "generators", "client": "127.0.0.1", "generators_target": 3}


async def test_a_checkpoint_and_a_version_to_go_back_to_are_noted_and_audited(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    (endpoint.folder.checkpoints / "v000008").mkdir()
    assert (await http.post("/v1/control/checkpoint")).json()["checkpoint"] is True
    assert (await http.post("/v1/control/rollback", json={"weight_version": 8})).json()["rollback_to"] == 8
    assert await AsyncControl(endpoint.redis, endpoint.keys).state() == ControlState(checkpoint=True, rollback_to=8)
    audit = await AsyncEventLog(endpoint.redis, endpoint.keys).tail(10)
    assert [event.fields for event in audit] == [
        {"action": "checkpoint", "client": "127.0.0.1"},
        {"action": "rollback", "client": "127.0.0.1", "weight_version": 8},
    ]


async def test_only_a_version_with_a_checkpoint_can_be_gone_back_to(
    endpoint: Endpoint, http: httpx.AsyncClient
) -> None:
    (endpoint.folder.checkpoints / "v000008").mkdir()
    answer = await http.post("/v1/control/rollback", json={"weight_version": 7})
    assert answer.status_code == 404
    assert answer.json() == {"error": "there is no checkpoint of version 7", "hint": "there are: 8"}
    assert (await AsyncControl(endpoint.redis, endpoint.keys).state()).rollback_to is None


@pytest.mark.parametrize(("route", "body"), [("checkpoint", None), ("rollback", {"weight_version": 8})])
async def test_a_learner_that_has_ended_is_asked_for_nothing(
    endpoint: Endpoint, http: httpx.AsyncClient, route: str, body: dict[str, int] | None
) -> None:
    (endpoint.folder.checkpoints / "v000008").mkdir()
    beats = AsyncHeartbeats(endpoint.redis, endpoint.keys)
    await beats.send(heartbeat(Part.LEARNER, "learner", "finished"))
    answer = await http.post(f"/v1/control/{route}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (409, "the learner has ended: finished")
    assert await AsyncControl(endpoint.redis, endpoint.keys).state() == ControlState()


async def test_a_version_is_exported_into_the_run_and_audited(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    tensors = {"w": RawTensor("F32", (1,), np.zeros(4, dtype=np.uint8))}
    endpoint.store.publish(0, tensors)
    answer = await http.post("/v1/control/export", json={"weight_version": 0})
    assert (answer.status_code, answer.json()) == (202, {"folder": "exports/v000000"})
    assert (endpoint.folder.path / "exports" / "v000000" / "model.safetensors").exists()
    audit = await AsyncEventLog(endpoint.redis, endpoint.keys).tail(10)
    assert [event.fields["action"] for event in audit] == ["export", "exported"]
    again = await http.post("/v1/control/export", json={"weight_version": 0})
    assert (again.status_code, again.json()["error"]) == (409, "v000000 is in the run's exports/ already")
    absent = await http.post("/v1/control/export", json={"weight_version": 3})
    assert absent.status_code == 404


@pytest.mark.parametrize("body", [{}, {"weight_version": "../x"}, {"weight_version": -1}, {"folder": "/tmp"}])
@pytest.mark.parametrize("route", ["export", "rollback"])
async def test_a_version_that_is_none_is_refused(http: httpx.AsyncClient, route: str, body: dict[str, object]) -> None:
    assert (await http.post(f"/v1/control/{route}", json=body)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"3",
        b'{"generators_target": -1}',
        b'{"generators_target": 1.5}',
        b'{"generators_target": "3"}',
        b'{"generators_target": NaN}',
        b'{"generators_target": 1, "x": 2}',
    ],
)
async def test_a_count_that_is_none_is_refused(endpoint: Endpoint, http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/control/generators", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert (await AsyncControl(endpoint.redis, endpoint.keys).state()).generators_target is None


async def test_a_slip_of_the_finger_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/control/generators", json={"generators_target": MAX_GENERATORS + 1})
    assert answer.status_code == 422


async def test_more_generators_than_fit_are_refused_with_what_fits(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    await AsyncControl(endpoint.redis, endpoint.keys).set_generators_limit(2)
    answer = await http.post("/v1/control/generators", json={"generators_target": 3})
    assert (answer.status_code, "suffice for 2" in answer.json()["error"]) == (422, True)
    assert "request 2 at most" in answer.json()["hint"]
