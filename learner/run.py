"""Runs a learner, one of its further ranks, or an evaluator to its end, and tells the run how it ended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import redis
import structlog

from learner.build import build_evaluator, build_learner, build_training
from learner.config import LearnerSettings
from learner.monitoring.heartbeat import LEARNER_ID, HeartbeatReporter
from learner.outcome import Outcome
from learner.parallel.ranks import Ranks
from learner.training.follower import follow
from services.errors import SeptError, UnavailableError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.streams.fence import Fence, take_over
from services.streams.heartbeats import Heartbeats
from services.streams.key_check import restore_keys

log = structlog.get_logger()

SAME_STOP_S = 1.0
"""Signals this close together are one request: systemd sends its own to a part that the supervisor stops, too."""

LAST_EVENT_S = 3.0
"""How long a learner that ends tries to tell Redis why."""


def run_learner(folder: RunFolder, settings: LearnerSettings, *, redis_url: str, ranks: Ranks | None = None) -> Outcome:
    """Train the run in `folder`, from its newest checkpoint if it has one. With several ranks: what rank 0 does."""
    with (
        connected(folder, redis_url, settings, device=settings.training.device) as (client, reporter, fence),
        build_learner(folder, settings, client, reporter, ranks, fence=fence) as loop,
    ):
        stop_on_signals(loop.stop)
        outcome = loop.run()
        reporter.update(outcome=outcome)
    return outcome


def run_follower(folder: RunFolder, settings: LearnerSettings, ranks: Ranks) -> None:
    """What the ranks other than 0 do: follow rank 0 until it is done."""
    trainer, checkpoints = build_training(folder, settings, ranks)
    follow(trainer, checkpoints)


def run_evaluator(folder: RunFolder, settings: LearnerSettings, *, redis_url: str) -> Outcome:
    """Evaluate the model, or go on with it, until every answer is graded."""
    with (
        connected(folder, redis_url, settings, device="cpu") as (client, reporter, fence),
        build_evaluator(folder, settings, client, reporter, fence=fence) as evaluator,
    ):
        stop_on_signals(evaluator.stop)
        outcome = evaluator.run()
        reporter.update(outcome=outcome)
    return outcome


@contextlib.contextmanager
def connected(
    folder: RunFolder, redis_url: str, settings: LearnerSettings, *, device: str
) -> Iterator[tuple[redis.Redis, HeartbeatReporter, Fence]]:
    """A client of the run's Redis, and heartbeats from the first moment on; the last one and an event say how it ended.

    From here on this process is the run's one writer: an earlier one that still lives is fenced. Whoever runs within
    the block tells the reporter the outcome, unless it fails.
    """
    keys = Keys(folder.run_id)
    with connect(redis_url, deadline_s=settings.deadlines.startup_s) as client:
        restore_keys(client, keys)
        fence = take_over(client, keys, folder.learner_epoch)
        reporter = HeartbeatReporter(Heartbeats(client, keys, fence), device=device)
        reporter.start()
        message = ""
        try:
            yield client, reporter, fence
        except BaseException as error:
            message = error.message if isinstance(error, SeptError) else f"{type(error).__name__}: {error}"
            raise
        finally:
            reporter.stop(message)
            # A client of its own: that of the run waits as long as a run has to.
            with contextlib.suppress(UnavailableError), connect(redis_url, deadline_s=LAST_EVENT_S) as last:
                EventLog(last, keys, fence).append(LEARNER_ID, reporter.state_at_end, message=message)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls `stop`; one that comes later than `SAME_STOP_S` after it ends the process."""
    asked_at: list[float] = []

    def stopping(number: int, _frame: FrameType | None) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            log.info("stopping")
            stop()
        elif time.monotonic() - asked_at[0] >= SAME_STOP_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping)
