"""How a run stands or ended, read from its folder alone: neither Redis nor a process of the run is needed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from services import durable
from services.api.status import RunState, last_rounds
from services.bottleneck import ROUNDS_CONSIDERED, seconds_left
from services.contracts import StatusSnapshot
from services.errors import ConfigError
from services.run_folder import EvaluationFolder, RunFolder, last_lines
from services.weights.reader import WeightReader

LOG_BYTES = 1 << 18
"""How much of the supervisor's log is looked at: the events of a start that failed are in its end."""


class End(NamedTuple):
    """How a run ended."""

    state: RunState
    detail: str
    """Why, in one line."""


def is_active(folder: RunFolder) -> bool:
    """Whether `sept run` or a learner works in the folder now, as far as this host knows."""
    return durable.is_locked(folder.supervisor_lock) or durable.is_locked(folder.learner_lock)


def announced_end(folder: RunFolder) -> End | None:
    """What the supervisor noted about the end of its last start; None while it goes on, or where it was killed."""
    for event in _events_of_last_start(folder):
        if event.get("event") == "run_failed":
            return End("failed", str(event.get("error", "")))
        if event.get("event") == "stopping":
            return End("stopped", f"by {event.get('signal', 'a signal')} {_progress(folder)}")
    return None


def how_it_ended(folder: RunFolder) -> End:
    """Of a run that is not active."""
    announced = announced_end(folder)
    if announced is not None and announced.state == "failed":
        return announced
    if EvaluationFolder(folder.path).results.exists():
        return End("finished", "every answer is judged")
    if 0 < folder.rounds_total <= _rounds_done(folder):
        return End("finished", f"{folder.rounds_total} rounds are done")
    return announced or End("stopped", _progress(folder))


def next_step(state: RunState, folder: RunFolder) -> str:
    """The command that makes sense now; empty while the run is active."""
    if state == "finished":
        if EvaluationFolder(folder.path).results.exists():
            return f"its results are in {EvaluationFolder(folder.path).results}"
        return f"sept export --run {folder.path} MODEL_FOLDER, or sept eval {folder.path} --benchmarks math500"
    return f"sept run {folder.config}" if state in ("failed", "stopped") else ""


def recorded_status(folder: RunFolder, store: WeightReader) -> StatusSnapshot:
    """The status without what only the run's own services know: parts, queues, requests."""
    rounds = last_rounds(folder.metrics, ROUNDS_CONSIDERED)
    active, last, total = is_active(folder), rounds[-1] if rounds else None, folder.rounds_total
    end = End("running" if rounds else "starting", "") if active else how_it_ended(folder)
    newest = store.latest()
    return StatusSnapshot(
        run_id=name_of(folder),
        state=end.state,
        detail=end.detail,
        round=last.round + 1 if last else 0,
        rounds_total=total,
        weight_version=newest.weight_version if newest else None,
        weight_digest=newest.digest if newest else None,
        last_round=last,
        learner=None,
        learner_lost=False,
        generators=(),
        generators_target=None,
        tasks_queued=0,
        tasks_leased=0,
        rollouts_queued=0,
        dead_letters=0,
        oldest_task_s=0.0,
        seconds_left=seconds_left(rounds, total) if active else None,
    )


def name_of(folder: RunFolder) -> str:
    """The run's id; the folder's name where run.json is damaged."""
    try:
        return folder.run_id
    except ConfigError:
        return folder.path.name


def _progress(folder: RunFolder) -> str:
    total = folder.rounds_total
    return f"after {_rounds_done(folder)} of {total} rounds" if total else f"after {_rounds_done(folder)} rounds"


def _rounds_done(folder: RunFolder) -> int:
    rounds = last_rounds(folder.metrics, 1)
    return rounds[-1].round + 1 if rounds else 0


def _events_of_last_start(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """What the supervisor noted since it was started last, newest first."""
    for line in reversed(last_lines(folder.log_of("supervisor"), LOG_BYTES)):
        with contextlib.suppress(ValueError):  # cut short by a crash, or by the start of the tail
            event = json.loads(line)
            if isinstance(event, dict):
                if event.get("event") == "run_starting":
                    return
                yield event
