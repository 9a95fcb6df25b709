"""Sends the learner's heartbeats from a thread: its state, shares of wall time, speed and version."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AbstractContextManager

import structlog

from learner.outcome import Outcome
from services.contracts import Heartbeat, Part
from services.errors import UnavailableError
from services.streams.heartbeats import HEARTBEAT_EVERY_S, LOST_AFTER_S, Heartbeats
from services.time_accounting import Rate, StateClock

LEARNER_ID = "learner"
JOIN_S = 5.0
"""Deadline of the last heartbeat: Redis may be what failed."""

log = structlog.get_logger()


class HeartbeatReporter:
    """Sends the learner's heartbeat every `every_s` seconds.

    reporter.start()
    reporter.update(weight_version=5)
    with reporter.during("publishing"): ...
    reporter.update(outcome=Outcome.FINISHED)
    reporter.stop()
    """

    def __init__(
        self,
        heartbeats: Heartbeats,
        *,
        device: str,
        every_s: float = HEARTBEAT_EVERY_S,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        self._heartbeats = heartbeats
        self._every_s = every_s
        self._lost_after_s = lost_after_s
        self._device = device
        self._weight_version = 0
        self._outcome: Outcome | None = None
        self._message = ""
        self._clock = StateClock("starting")
        self._rate = Rate(window_s=30.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def state_at_end(self) -> str:
        """State of the last heartbeat, if the learner ended now; starting again goes on after both kinds of stop."""
        if self._outcome is None:
            return "failed"
        return "finished" if self._outcome is Outcome.FINISHED else "stopped"

    def update(
        self, *, weight_version: int | None = None, device: str | None = None, outcome: Outcome | None = None
    ) -> None:
        """Change what heartbeats report. Without an outcome the learner has failed."""
        if weight_version is not None:
            self._weight_version = weight_version
        if device is not None:
            self._device = device
        if outcome is not None:
            self._outcome = outcome

    def start(self) -> None:
        """Start the thread that sends heartbeats."""
        self._thread.start()

    def stop(self, message: str = "") -> None:
        """Send the last heartbeat, with the outcome as its state and `message` as its reason."""
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

    def count_tokens(self, tokens: int) -> None:
        """Count prompt and response tokens that were trained."""
        self._rate.add(tokens)

    def generator_pause_ms(self) -> float:
        """The longest of the generators' last pauses for a weight update; 0 when none is known."""
        beats = [heartbeat for heartbeat, _ in self._heartbeats.read_all()]
        return max((beat.pause_ms for beat in beats if beat.part is Part.GENERATOR), default=0.0)

    def slowest_line(self) -> float | None:
        """Bytes per second that reach the living generator with the slowest line; None while none has measured it."""
        beats = [beat for beat, age_s in self._heartbeats.read_all() if age_s <= self._lost_after_s]
        return min((beat.line_bytes_per_s for beat in beats if beat.line_bytes_per_s), default=None)

    def has_generator_above(self, weight_version: int) -> bool:
        """Whether a living generator serves a later version than this."""
        living = [beat for beat, age_s in self._heartbeats.read_all() if age_s <= self._lost_after_s]
        served = [beat.weight_version or 0 for beat in living if beat.part is Part.GENERATOR]
        return max(served, default=0) > weight_version

    def _run(self) -> None:
        while True:
            ended = self._stop.is_set()
            try:
                self._heartbeats.send(self._heartbeat())
            except UnavailableError as error:  # the learner's own requests decide how long that may last
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
            weight_version=self._weight_version,
            tokens_per_s=self._rate.per_s(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device,
            message=self._message,
        )
