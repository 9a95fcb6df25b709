"""What the processes of a local run report: whether they have done work, and for how long they have been silent.

A part that fails again and again without work in between must be given up. One that makes progress between its
failures is worth another start.
"""

from __future__ import annotations

import asyncio
import os

from redis.exceptions import RedisError

from services.api.status import has_loaded
from services.contracts import Part
from services.errors import UnavailableError
from services.run_folder import EvaluationFolder, RunFolder
from services.streams.connection import Keys, connect_async, is_cancelled
from services.streams.heartbeats import LOST_AFTER_S, AsyncHeartbeats

READ_EVERY_S = 2.0
"""Less than the time for which a heartbeat shows the tokens of a finished task."""
ANSWERS_WITHIN_S = 5.0


class RunProgress:
    """What the run has made durable: checkpoints, or an evaluation's answers."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._start = self._read()
        self._at_last_question: dict[str, tuple[int, int]] = {}

    def has_grown(self, part: str) -> bool:
        """Whether there is more than at this part's last question, at first: than at the start."""
        before, now = self._at_last_question.get(part, self._start), self._read()
        self._at_last_question[part] = now
        return now > before

    def _read(self) -> tuple[int, int]:
        answers = EvaluationFolder(self._folder.path).generations
        try:
            answered = answers.stat().st_size
        except OSError:
            answered = 0
        return max(self._folder.checkpointed(), default=0), answered


def _is_new(age_s: float) -> bool:
    return age_s <= LOST_AFTER_S


def _session_of(pid: int) -> int:
    """The process that the supervisor started, which leads the session of all that it started itself."""
    try:
        return os.getsid(pid)
    except (OSError, OverflowError):  # of another host, or ended by now
        return pid


def _kind_of(part: str) -> Part:
    """An evaluator in the learner's place sends the learner's heartbeats."""
    return Part.GENERATOR if part.startswith(Part.GENERATOR.value) else Part.LEARNER


class WorkReports:
    """A generator has worked when a heartbeat of its process counted tokens; any other part when the run has grown."""

    def __init__(self, folder: RunFolder, redis_url: str) -> None:
        self._progress = RunProgress(folder)
        self._redis_url = redis_url
        self._keys = Keys(folder.run_id)
        self._sampled: set[int] = set()
        self._loaded = asyncio.Event()
        self._listened_s = 0.0
        """For how long heartbeats were read. It counts neither while Redis is away nor while this process is stopped,
        so that neither makes a part silent."""
        self._heard_at: dict[tuple[Part, int], float] = {}
        """Process that was asked about -> `_listened_s` at its last heartbeat, at first: at that question."""

    def has_worked(self, part: str, pid: int) -> bool:
        """Whether the process `pid` has done work as this part; ask once, when it has ended."""
        self._heard_at.pop((_kind_of(part), pid), None)
        if _kind_of(part) is Part.GENERATOR:
            return pid in self._sampled
        return self._progress.has_grown(part)

    async def learner_has_loaded(self) -> None:
        """Wait until a living learner's heartbeat says that it does something with its weights."""
        await self._loaded.wait()

    def silent_s(self, part: str, pid: int) -> float:
        """Seconds since the last heartbeat of the process `pid`, or of a rank that it started; since it started, if
        there was none. Redis and the services send none and are never silent.
        """
        if part in ("redis", "services"):
            return 0.0
        return self._listened_s - self._heard_at.setdefault((_kind_of(part), pid), self._listened_s)

    async def follow(self) -> None:
        """Read the heartbeats until cancelled; while Redis does not answer there are none."""
        while not is_cancelled():
            try:
                await self._read_heartbeats()
            except (RedisError, UnavailableError):
                await asyncio.sleep(READ_EVERY_S)

    async def _read_heartbeats(self) -> None:
        client = await connect_async(self._redis_url, deadline_s=ANSWERS_WITHIN_S)
        try:
            heartbeats = AsyncHeartbeats(client, self._keys)
            while not is_cancelled():
                beats = await heartbeats.read_all()
                new = [beat for beat, age_s in beats if _is_new(age_s)]
                heard = {(beat.part, _session_of(beat.pid)) for beat in new}
                self._heard_at |= dict.fromkeys(heard & self._heard_at.keys(), self._listened_s)
                if any(beat.part is Part.LEARNER and has_loaded(beat.state) for beat in new):
                    self._loaded.set()
                self._sampled |= {beat.pid for beat, _ in beats if beat.part is Part.GENERATOR and beat.tokens_per_s}
                await asyncio.sleep(READ_EVERY_S)
                self._listened_s += READ_EVERY_S
        finally:
            await client.aclose()
