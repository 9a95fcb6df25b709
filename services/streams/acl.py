"""What a generator may do in Redis: a user of its own, as a line of the server's configuration.

A generator runs on machines that nobody watches. Its user sees the keys of a run that generators write, and runs on
each the commands that their scripts run. It loads no script of its own, reads no rollout, writes no task and no
request, and knows nothing of the server. The services keep the scripts loaded for it.

docs/security.md says what such a user can still do. docker-compose.yml and the Kubernetes manifests have the same
rules.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from services.errors import UnavailableError
from services.streams import scripts
from services.streams.connection import is_cancelled

GENERATOR = "generator"
"""Name of the user."""

CONNECTION = ("ping", "hello", "auth", "select", "client|setname", "time")
"""Commands without a key."""

ON_KEYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("evalsha",), ("tasks", "open", "counters", "rollouts", "refused", "dead_letters", "heartbeats")),
    (
        ("xreadgroup", "xautoclaim", "xclaim", "xpending", "xack", "xdel", "xgroup|create", "xgroup|delconsumer"),
        ("tasks",),
    ),
    (("hget", "hdel"), ("open",)),
    (("hincrby",), ("counters",)),
    (("hget",), ("refused",)),
    (("xadd",), ("rollouts", "dead_letters", "generator_events")),
    (("hset", "hdel"), ("heartbeats",)),
)
"""Commands, and the run's keys that each of them may name."""

SCRIPTS = (
    scripts.LEASE,
    scripts.RENEW,
    scripts.RELEASE,
    scripts.LEAVE,
    scripts.COMPLETE,
    scripts.REJECT,
    scripts.BEAT,
)
"""What a generator runs."""

CHECK_EVERY_S = 1.0

log = structlog.get_logger()


def generator_rules(password: str) -> str:
    """The rules of the user as ACL SETUSER and a line `user NAME ...` of the configuration take them."""
    secret = hashlib.sha256(password.encode()).hexdigest()
    return f"on #{secret} resetchannels {permissions()}"


def permissions() -> str:
    """What the user may do, without its password."""
    selectors = [
        "(" + " ".join([*(f"+{command}" for command in commands), *(f"~sept:*:{key}" for key in keys)]) + ")"
        for commands, keys in ON_KEYS
    ]
    return " ".join(["resetkeys", "-@all", *(f"+{command}" for command in CONNECTION), *selectors])


async def keep_scripts_loaded(client: redis.asyncio.Redis, *, every_s: float = CHECK_EVERY_S) -> None:
    """Load the scripts of generators until cancelled: a server that restarted has lost them."""
    digests = [hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in SCRIPTS]
    untyped: Any = client
    while not is_cancelled():
        try:
            there = await untyped.script_exists(*digests)
            for script, is_there in zip(SCRIPTS, there, strict=True):
                if not is_there:
                    await untyped.script_load(script)
        except (RedisError, UnavailableError) as error:
            log.warning("scripts_not_loaded", reason=str(error))
        await asyncio.sleep(every_s)
