"""The learner's heartbeat: what it does, in shares of wall time, from a thread that training never delays."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AbstractContextManager

import structlog

from learner.outcome import Outcome
from services.contracts import Heartbeat, Part
from services.errors import UnavailableError
from services.streams.heartbeats import Heartbeats
from services.time_accounting import Rate, StateClock

LEARNER_ID = "learner"
LIVING_BEATS = 5
"""Heartbeats that a generator may miss and still count as living."""
JOIN_S = 5.0
"""How long the last heartbeat may take: Redis may be what failed."""

log = structlog.get_logger()


class Report:
    """Sends the learner's heartbeat every `every_s`."""

    def __init__(self, heartbeats: Heartbeats, *, device: str, every_s: float) -> None:
        self.weight_version = 0
        self.device = device
        self.outcome: Outcome | None = None
        """How it ended, set by whoever knows; None: it failed."""
        self._heartbeats = heartbeats
        self._every_s = every_s
        self._message = ""
        self._clock = StateClock("starting")
        self._rate = Rate(window_s=30.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def state_at_end(self) -> str:
        """What people see of how it ended; starting again goes on after both kinds of stop."""
        if self.outcome is None:
            return "failed"
        return "finished" if self.outcome is Outcome.FINISHED else "stopped"

    def stop(self, message: str = "") -> None:
        """Send a last heartbeat that says how it ended, and `message` why."""
        self._message = message
        self._clock.enter(self.state_at_end)
        self._stop.set()
        self._thread.join(JOIN_S)

    def seconds_in(self, state: str) -> float:
        """Wall time spent in the state so far."""
        return self._clock.seconds().get(state, 0.0)

    def enter(self, state: str) -> None:
        """Account the time from now on to `state`."""
        self._clock.enter(state)

    def during(self, state: str) -> AbstractContextManager[None]:
        """Account the block's wall time to `state`."""
        return self._clock.during(state)

    def trained(self, tokens: int) -> None:
        """Count prompt and response tokens that were trained on."""
        self._rate.add(tokens)

    def generator_pause_ms(self) -> float:
        """The longest of the generators' last update pauses; 0 when none is known."""
        beats = [heartbeat for heartbeat, _ in self._heartbeats.read_all()]
        return max((beat.pause_ms for beat in beats if beat.part is Part.GENERATOR), default=0.0)

    def generators_above(self, weight_version: int) -> bool:
        """Whether a living generator serves a later version than this."""
        living = [beat for beat, age_s in self._heartbeats.read_all() if age_s <= LIVING_BEATS * self._every_s]
        served = [beat.weight_version or 0 for beat in living if beat.part is Part.GENERATOR]
        return max(served, default=0) > weight_version

    def _run(self) -> None:
        while True:
            ended = self._stop.is_set()
            try:
                self._heartbeats.send(self._heartbeat())
            except UnavailableError as error:  # the learner's own waits decide how long that is borne
                log.warning("heartbeat_not_sent", error=error.message)
            if ended:
                return
            self._stop.wait(self._every_s)

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            part=Part.LEARNER,
            part_id=LEARNER_ID,
            state=self._clock.state,
            shares=self._clock.shares(),
            weight_version=self.weight_version,
            tokens_per_s=self._rate.per_s(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.device,
            message=self._message,
        )
