"""Heartbeats as parts send them, and the status of a run that is read from them."""

from __future__ import annotations

from services.contracts import Heartbeat, Part, StatusSnapshot


def heartbeat(part: Part, part_id: str, state: str, **fields: object) -> Heartbeat:
    base = {"part": part, "part_id": part_id, "state": state, "shares": {state: 1.0}}
    return Heartbeat.model_validate(base | {"host": "h", "pid": 1, "device": "cpu"} | fields)


def status_of(**fields: object) -> StatusSnapshot:
    """Of a run without parts, rounds or tasks, but for the fields."""
    nothing = dict.fromkeys(("weight_version", "weight_digest", "last_round", "learner", "generators_target"))
    counts = dict.fromkeys(
        ("round", "rounds_total", "tasks_queued", "tasks_leased", "rollouts_queued", "dead_letters"), 0
    )
    base = {"run_id": "run", "state": "running", "detail": "", "learner_lost": False, "generators": ()}
    return StatusSnapshot.model_validate(nothing | counts | base | {"oldest_task_s": 0.0} | fields)
