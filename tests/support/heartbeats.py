"""Heartbeats as parts send them."""

from __future__ import annotations

from services.contracts import Heartbeat, Part


def heartbeat(part: Part, part_id: str, state: str, **fields: object) -> Heartbeat:
    base = {"part": part, "part_id": part_id, "state": state, "shares": {state: 1.0}}
    return Heartbeat.model_validate(base | {"host": "h", "pid": 1, "device": "cpu"} | fields)
