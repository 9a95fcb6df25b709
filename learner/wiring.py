"""What the learner and the evaluator, which stands in its place, are wired with alike. Knows neither of their loops."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType

import redis
import structlog

from learner.publisher import Publisher
from learner.rollouts.collector import Collector
from services.contracts import Purpose
from services.run_folder import RunFolder
from services.streams.connection import Keys
from services.streams.dead_letters import read_dead_letters
from services.streams.events import EventLog
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.streams.wire import claimed_task_id
from services.weights.publisher import KEEP_VERSIONS, WeightPublisher

log = structlog.get_logger()


def new_publisher(folder: RunFolder, max_staleness: int, client: redis.Redis, keys: Keys) -> Publisher:
    """Writes versions of the run and announces them; keeps every version that a task may still ask for."""
    keep_versions = max(KEEP_VERSIONS, max_staleness + 2)
    store = WeightPublisher(folder.weights, folder.run_id, keep_versions=keep_versions)
    return Publisher(store, EventLog(client, keys))


def new_collector(client: redis.Redis, keys: Keys, first_round: int, purpose: Purpose) -> Collector:
    """One on the run's queues, not yet started, whose errors quote the reason of a task's newest dead letter."""
    return Collector(
        TaskIssuer(client, keys),
        RolloutReader(client, keys),
        first_round=first_round,
        purpose=purpose,
        reason_of=partial(why_given_up, client, keys),
    )


def stop_on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls `stop`, the second ends the process."""

    def stopping(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log.info("stopping")
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping)


def why_given_up(client: redis.Redis, keys: Keys, task_id: str) -> str:
    """The reason in the task's newest dead letter; empty when it has none."""
    letters = read_dead_letters(client, keys, count=1000)
    return next((letter.reason for letter in letters if claimed_task_id(letter.fields) == task_id), "")
