"""The status of the run now, from heartbeats, queues, published versions and the run folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import ValidationError
from redis.asyncio import Redis

from services.api.error_responses import may_answer
from services.bottleneck import ROUNDS_CONSIDERED, Bottleneck, Look, find_bottleneck, seconds_left
from services.contracts import (
    GeneratorStatus,
    Heartbeat,
    Part,
    RoundMetrics,
    StartingPart,
    StatusSnapshot,
    WeightManifest,
)
from services.run_folder import RunFolder, last_lines
from services.streams.connection import Keys, why_no_writes
from services.streams.control import AsyncControl
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.tasks import QueueGauge
from services.weights.reader import WeightReader

RunState = Literal["starting", "running", "paused", "finished", "failed", "stopped"]

FINAL_STATES: dict[str, RunState] = {"finished": "finished", "failed": "failed", "stopped": "stopped"}
"""States of the learner's heartbeat that end the run."""
LOADING_STATES = frozenset({"starting", "publishing"})
"""States of a learner that loads its weights, and publishes them for the first time."""

TAIL_BYTES = 1 << 16
"""More than the lines of metrics.jsonl that `find_bottleneck` looks at."""


class StatusReader:
    """Reads a snapshot of one run."""

    def __init__(
        self, folder: RunFolder, store: WeightReader, redis: Redis, keys: Keys, *, lost_after_s: float
    ) -> None:
        self.folder = folder
        self._store = store
        self._redis = redis
        self._keys = keys
        self._lost_after_s = lost_after_s
        self._gauge = QueueGauge(redis, keys)
        self._control = AsyncControl(redis, keys)

    async def read(self) -> StatusSnapshot:
        """UnavailableError when Redis does not answer."""
        return (await self.read_with_bottleneck())[0]

    async def read_with_bottleneck(self) -> tuple[StatusSnapshot, Bottleneck]:
        """The status with what limits the run; UnavailableError when Redis does not answer."""
        beats = await AsyncHeartbeats(self._redis, self._keys).read_all()
        depth = await self._gauge.read()
        control = await self._control.state()
        newest, rounds, total, looks, log = await asyncio.to_thread(self._read_disk)
        last = rounds[-1] if rounds else None
        learner, learner_age_s = self._learner(beats)
        learner_lost = learner is not None and learner_age_s > self._lost_after_s and learner.state not in FINAL_STATES
        generators = tuple(
            GeneratorStatus(heartbeat=beat, age_s=age_s, lost=age_s > self._lost_after_s)
            for beat, age_s in beats
            if beat.part is Part.GENERATOR
        )
        starting = tuple(starting_parts(log.started, learner, learner_age_s, generators, time.time()))
        silent = learner is None or learner_lost or any(status.lost for status in generators)
        outside = await why_no_writes(self._redis) if silent else ""  # then nobody can send a heartbeat
        state = run_state(learner, paused=control.paused, published=newest is not None)
        snapshot = StatusSnapshot(
            run_id=self._keys.run_id,
            state=state,
            detail=outside
            or _detail(
                state,
                learner,
                learner_age_s if learner_lost else None,
                generators,
                log.deaths,
                starting,
                loading=None if rounds else newest,
            ),
            round=last.round + 1 if last else 0,
            rounds_total=total,
            weight_version=newest.weight_version if newest else None,
            weight_digest=newest.digest if newest else None,
            last_round=last,
            learner=learner,
            learner_lost=learner_lost,
            generators=generators,
            starting=starting,
            generators_target=control.generators_target,
            tasks_queued=depth.tasks_queued,
            tasks_leased=depth.tasks_leased,
            rollouts_queued=depth.rollouts_queued,
            dead_letters=depth.dead_letters,
            oldest_task_s=depth.oldest_task_s,
            seconds_left=seconds_left(rounds, total) if state == "running" else None,
        )
        if state != "running":
            return snapshot, Bottleneck(kind="unknown", reason=f"the run is {state}")
        return snapshot, find_bottleneck(
            rounds,
            generators,
            looks,
            generators_target=control.generators_target,
            most_generators=_room_for(generators),
        )

    def _read_disk(self) -> tuple[WeightManifest | None, list[RoundMetrics], int, list[Look], SupervisorNews]:
        rounds = last_rounds(self.folder.metrics, ROUNDS_CONSIDERED)
        looks = last_looks(self.folder.queue_history)
        log = read_supervisor_log(self.folder.log_of("supervisor"))
        return self._store.latest(), rounds, self.folder.rounds_total, looks, log

    def _learner(self, beats: Sequence[tuple[Heartbeat, float]]) -> tuple[Heartbeat | None, float]:
        """The learner with the newest heartbeat: a restarted one may have another part id."""
        learners = [(beat, age_s) for beat, age_s in beats if beat.part is Part.LEARNER]
        return min(learners, key=lambda pair: pair[1], default=(None, 0.0))


def has_loaded(state: str) -> bool:
    """Whether a learner whose heartbeat has this state does something with its weights."""
    return state not in LOADING_STATES and state not in FINAL_STATES


def run_state(learner: Heartbeat | None, *, paused: bool, published: bool) -> RunState:
    """One word for the whole run."""
    if learner is not None and learner.state in FINAL_STATES:
        return FINAL_STATES[learner.state]
    if paused:
        return "paused"
    return "running" if learner is not None and published else "starting"


def _detail(
    state: RunState,
    learner: Heartbeat | None,
    silent_s: float | None,
    generators: Sequence[GeneratorStatus],
    deaths: Mapping[Part, str],
    starting: Sequence[StartingPart],
    *,
    loading: WeightManifest | None,
) -> str:
    """What a person should look at first; `loading`: the version that engines load before there is a round."""
    why_no_learner, why_no_generator = deaths.get(Part.LEARNER, ""), deaths.get(Part.GENERATOR, "")
    loads = {part.part_id: f"{part.doing}, {part.for_s:.0f} s" for part in starting}
    of_learner = next((f": {text}" for part, text in loads.items() if not _is_generator(part)), "")
    if learner is None:
        return f"waiting for the learner{of_learner}{why_no_learner}"
    if state in FINAL_STATES.values():
        return learner.message
    if silent_s is not None:
        return f"learner {learner.part_id} has been silent for {silent_s:.0f} s{why_no_learner}"
    if state == "starting":
        return f"waiting for the learner to publish its first version{of_learner}{why_no_learner}"
    if not generators and loading is not None:
        since_s = max(0.0, time.time() - loading.created_at)
        return f"no generator is up yet: loading engines, {since_s:.0f} s{why_no_generator}"
    again = [part for part in loads if part in {status.heartbeat.part_id for status in generators}]
    if again:
        return f"{again[0]} was started again: {loads[again[0]]}{why_no_generator}"
    lost = [status.heartbeat.part_id for status in generators if status.lost]
    if len(lost) == len(generators):
        return f"no generator is alive{': lost ' + ', '.join(lost[:5]) if lost else ''}{why_no_generator}"
    if lost:
        return f"lost generators: {', '.join(lost[:5])}"
    return learner.message or _doing(learner)


def _doing(learner: Heartbeat) -> str:
    """What the learner does, for which round: round r is trained from version r."""
    round_ = f"round {learner.weight_version}"
    return {
        "starting": f"preparing {round_}",
        "waiting_for_rollouts": f"waiting for rollouts of {round_}",
        "training": f"training {round_}",
        "publishing": f"publishing version {learner.weight_version}",
        "checkpointing": f"writing the checkpoint of version {learner.weight_version}",
        "paused": f"paused before {round_}",
    }.get(learner.state, learner.state.replace("_", " "))


def last_rounds(path: Path, count: int) -> list[RoundMetrics]:
    """Up to `count` of the last whole lines of metrics.jsonl, oldest first, read from its end."""
    rounds: list[RoundMetrics] = []
    for line in reversed(last_lines(path, TAIL_BYTES)):
        if len(rounds) == count:
            break
        try:
            rounds.append(RoundMetrics.model_validate_json(line))
        except ValidationError:
            continue  # cut short by a crash, or by the start of the tail
    return rounds[::-1]


def last_looks(path: Path) -> list[Look]:
    """The looks at the generators in the end of queue.jsonl, oldest first."""
    looks = []
    for line in last_lines(path, TAIL_BYTES):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short, or no generator was alive
            values = json.loads(line)
            looks.append(Look(float(values["time"]), float(values["generators_busy"])))
    return looks


@dataclass(frozen=True, slots=True)
class SupervisorNews:
    """What the log of a local run's supervisor says since it last started; nothing for a run without one."""

    deaths: Mapping[Part, str]
    """How the learner, and the generators, last ended before their time, for the end of a sentence."""
    started: Mapping[str, float]
    """Learner or generator whose process runs -> when it was started, in Unix seconds."""


def read_supervisor_log(path: Path) -> SupervisorNews:
    """From the end of the log."""
    deaths: dict[Part, str] = {}
    started: dict[str, float] = {}
    for line in last_lines(path, TAIL_BYTES):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut short by a full disk
            event = json.loads(line)
            kind, part = event["event"], event.get("part", "")
            if kind == "run_starting":
                deaths.clear()
                started.clear()
            elif part in ("", "redis", "services"):
                continue
            elif kind == "part_started":
                started[part] = float(event["time"])
            elif kind in ("part_died", "part_ended"):
                started.pop(part, None)
                if kind == "part_died":
                    words = f": {event['last_words']}" if event.get("last_words") else ""
                    of = Part.GENERATOR if _is_generator(part) else Part.LEARNER
                    deaths[of] = f"; {part} has ended before ({event['ended']}){words}"
    return SupervisorNews(deaths, started)


def starting_parts(
    started: Mapping[str, float],
    learner: Heartbeat | None,
    learner_age_s: float,
    generators: Sequence[GeneratorStatus],
    now_s: float,
) -> Iterator[StartingPart]:
    """Parts whose process has sent no heartbeat yet, and a learner whose heartbeat says that it starts."""
    ages_s = {status.heartbeat.part_id: status.age_s for status in generators}
    for part, at_s in started.items():
        is_generator, for_s = _is_generator(part), now_s - at_s
        age_s = ages_s.get(part) if is_generator else learner_age_s if learner is not None else None
        is_loading = not is_generator and learner is not None and learner.state == "starting"
        if age_s is None or age_s > for_s or is_loading:
            doing: Literal["loading engine", "loading model"] = "loading engine" if is_generator else "loading model"
            yield StartingPart(part_id=part, doing=doing, for_s=max(0.0, for_s))


def _is_generator(part: str) -> bool:
    return part.startswith(Part.GENERATOR.value)


def _room_for(generators: Sequence[GeneratorStatus]) -> int | None:
    """How many generators this machine holds, where all of them compute on its cores; None: not known."""
    beats = [status.heartbeat for status in generators]
    here = socket.gethostname()
    return len(os.sched_getaffinity(0)) if all(beat.host == here and beat.device == "cpu" for beat in beats) else None


def status_router(reader: StatusReader) -> APIRouter:
    """GET /v1/status."""
    router = APIRouter(tags=["status"])

    @router.get("/v1/status", responses=may_answer(409, 422, 503))
    async def status() -> StatusSnapshot:
        """The run at a glance."""
        return await reader.read()

    return router
