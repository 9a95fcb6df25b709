"""Looks at a run's keys before a learner starts to use them: what somebody else wrote there must not stop it.

A key of another type makes every command on it fail, and an entry with the last possible id every later XADD. Entries
and values that cannot be read are no matter of this module: their readers set them aside one by one.
"""

from __future__ import annotations

import time
from typing import Any

import redis
import structlog

from services.streams import scripts
from services.streams.connection import Keys
from services.streams.wire import AHEAD_S, entered_at

log = structlog.get_logger()


def restore_keys(client: redis.Redis, keys: Keys) -> None:
    """Remove the run's keys that have a wrong type, and entries with ids of the far future. Idempotent."""
    streams = (keys.tasks, keys.rollouts, keys.dead_letters, keys.events, keys.generator_events)
    beats = (keys.heartbeats, keys.learner_heartbeats)
    hashes = (keys.open, keys.counters, keys.control, keys.refused, *beats)
    strings = (keys.incarnation, keys.generators_target, keys.epoch)
    for kind, names in (("stream", streams), ("hash", hashes), ("string", strings)):
        for name in names:
            found = _text(client.type(name))
            if found not in (kind, "none"):
                log.warning("key_removed", key=name, expected=kind, found=found)
                client.delete(name)
    for name in streams:
        if _last_id_at(client, name) > time.time() + AHEAD_S:
            _forget_the_future(client, keys, name)


def _last_id_at(client: redis.Redis, name: str) -> float:
    """When the stream's newest entry claims to have been added; 0 where there is no stream."""
    if not client.exists(name):
        return 0.0
    info: Any = client.xinfo_stream(name)
    return entered_at(info["last-generated-id"])


def _forget_the_future(client: redis.Redis, keys: Keys, name: str) -> None:
    log.warning("entries_of_the_future_removed", key=name)
    if name == keys.tasks:  # its group has read up to there; the learner issues again what is missing
        client.delete(keys.tasks, keys.open, keys.incarnation)
        return
    newest_ms = round((time.time() + AHEAD_S) * 1000)
    client.eval(scripts.COPY_UNTIL, 1, name, newest_ms)


def _text(answer: Any) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
