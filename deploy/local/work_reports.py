"""Whether the processes of a local run have done work, which is more than having lived.

A part that fails again and again without work in between must be given up. One that makes progress between its
failures is worth another start.
"""

from __future__ import annotations

import asyncio

from redis.exceptions import RedisError

from services.api.status import FINAL_STATES
from services.contracts import Part
from services.errors import UnavailableError
from services.run_folder import EvaluationFolder, RunFolder
from services.streams.connection import Keys, connect_async
from services.streams.heartbeats import LOST_AFTER_S, AsyncHeartbeats

READ_EVERY_S = 2.0
"""Less than the time for which a heartbeat shows the tokens of a finished task."""
ANSWERS_WITHIN_S = 5.0
LOADING_STATES = frozenset({"starting", "publishing"})
"""States of a learner that loads its weights, and publishes them for the first time."""


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


def has_loaded(state: str) -> bool:
    """Whether a learner whose heartbeat has this state does something with its weights."""
    return state not in LOADING_STATES and state not in FINAL_STATES


class WorkReports:
    """A generator has worked when a heartbeat of its process counted tokens; any other part when the run has grown."""

    def __init__(self, folder: RunFolder, redis_url: str) -> None:
        self._progress = RunProgress(folder)
        self._redis_url = redis_url
        self._keys = Keys(folder.run_id)
        self._sampled: set[int] = set()
        self._loaded = asyncio.Event()
        self._reported: set[int] = set()

    def has_worked(self, part: str, pid: int) -> bool:
        """Whether the process `pid` has done work as this part; ask once, when it has ended."""
        if part.startswith(Part.GENERATOR.value):
            return pid in self._sampled
        return self._progress.has_grown(part)

    async def learner_has_loaded(self) -> None:
        """Wait until a living learner's heartbeat says that it does something with its weights."""
        await self._loaded.wait()

    def is_ready(self, part: str, pid: int) -> bool:
        """Whether the process `pid` has sent a heartbeat, for a generator, whose engine may hang as it starts.

        A learner sends its first one before it does anything that takes long, from any of its ranks' processes; Redis
        and the services send none.
        """
        return not part.startswith(Part.GENERATOR.value) or pid in self._reported

    async def follow(self) -> None:
        """Read the heartbeats until cancelled; while Redis does not answer there are none."""
        while True:
            try:
                await self._read_heartbeats()
            except (RedisError, UnavailableError):
                await asyncio.sleep(READ_EVERY_S)

    async def _read_heartbeats(self) -> None:
        client = await connect_async(self._redis_url, deadline_s=ANSWERS_WITHIN_S)
        try:
            heartbeats = AsyncHeartbeats(client, self._keys)
            while True:
                beats = await heartbeats.read_all()
                self._reported |= {beat.pid for beat, _ in beats}
                if any(
                    beat.part is Part.LEARNER and age_s <= LOST_AFTER_S and has_loaded(beat.state)
                    for beat, age_s in beats
                ):
                    self._loaded.set()
                self._sampled |= {beat.pid for beat, _ in beats if beat.part is Part.GENERATOR and beat.tokens_per_s}
                await asyncio.sleep(READ_EVERY_S)
        finally:
            await client.aclose()
