"""The frame that every open page gets when something has changed, made once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import structlog
from pydantic import BaseModel
from redis.exceptions import RedisError

from services.api.change_notifier import ChangeNotifier
from services.api.control import ControlRequests
from services.api.status import FINAL_STATES, StatusReader
from services.bottleneck import Bottleneck
from services.contracts import StatusSnapshot
from services.dashboard.recorded import announced_end, next_step, recorded_status
from services.dashboard.timeseries import TimeSeries
from services.errors import SeptError
from services.run_folder import RunFolder
from services.streams.control import AsyncControl
from services.weights.reader import WeightReader

EVERY_S = 1.0
KEEP_ALIVE_S = 20.0
"""A stream in which nothing changes says so this often: proxies close those that are silent."""

log = structlog.get_logger()


class Frame(BaseModel):
    """One look at the run. Without `status`, `error` says why there is none."""

    error: str = ""
    status: StatusSnapshot | None = None
    requests: ControlRequests | None = None
    """None: nothing can be asked of the run here."""
    bottleneck: Bottleneck | None = None
    recorded: int = 0
    """Rounds in metrics.jsonl."""
    generation: int = 0
    """Changes when metrics.jsonl was cut back."""
    next_step: str = ""
    """What a person does next with a run that has ended."""
    live_url: str = ""
    """Where the page of a run that is active is, if not here."""


class Readable(Protocol):
    """Where frames come from."""

    async def read(self, *, is_last: bool = False) -> Frame:
        """The run now; `is_last`: nobody will ask again."""
        ...


class ActiveRun:
    """Reads the frames of a run whose services these are."""

    def __init__(self, reader: StatusReader, control: AsyncControl, rounds: TimeSeries) -> None:
        self._reader = reader
        self._control = control
        self._rounds = rounds

    async def read(self, *, is_last: bool = False) -> Frame:
        """The run as Redis and its folder say; `is_last`: the run's services end now."""
        try:
            status, bottleneck = await self._reader.read_with_bottleneck()
            state = await self._control.state()
            await asyncio.to_thread(self._rounds.refresh)
        except (SeptError, RedisError) as error:
            reason = error.message if isinstance(error, SeptError) else f"Redis: {type(error).__name__}"
            log.warning("status_not_read", reason=reason)
            return Frame(error=reason)
        folder = self._reader.folder
        if is_last and status.state not in FINAL_STATES.values():
            end = await asyncio.to_thread(announced_end, folder)  # of a run that another part has ended
            status = status if end is None else status.model_copy(update={"state": end.state, "detail": end.detail})
        return Frame(
            status=status,
            requests=ControlRequests.of(state),
            bottleneck=bottleneck,
            recorded=self._rounds.lines,
            generation=self._rounds.generation,
            next_step=next_step(status.state, folder),
        )


class RecordedRun:
    """Reads the frames of a run from its folder alone."""

    def __init__(self, folder: RunFolder, store: WeightReader, rounds: TimeSeries, live_url: Callable[[], str]) -> None:
        self._folder = folder
        self._store = store
        self._rounds = rounds
        self._live_url = live_url

    async def read(self, *, is_last: bool = False) -> Frame:
        """The run as its folder says; `is_last` changes nothing."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Frame:
        try:
            status = recorded_status(self._folder, self._store)
            self._rounds.refresh()
        except (SeptError, OSError) as error:
            return Frame(error=str(error))
        return Frame(
            status=status,
            recorded=self._rounds.lines,
            generation=self._rounds.generation,
            next_step=next_step(status.state, self._folder),
            live_url="" if status.state in FINAL_STATES.values() else self._live_url(),
        )


class Live:
    """Shares one look at the run among any number of listeners; nobody listening costs nothing."""

    def __init__(
        self,
        run: Readable,
        notifier: ChangeNotifier,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._notifier = notifier
        self._now = now
        self._lock = asyncio.Lock()
        self._text = ""
        self._made_at: float | None = None

    async def frames(self) -> AsyncIterator[str]:
        """Server-sent events, at most about one a second, until the app goes down."""
        sent, sent_at = "", self._now()
        while not self._notifier.closed:
            text = await self.look()
            if text != sent:
                sent, sent_at = text, self._now()
                yield f"data: {text}\n\n"
            elif self._now() - sent_at >= KEEP_ALIVE_S:
                sent_at = self._now()
                yield ": still here\n\n"
            await self._notifier.wait(self._notifier.next_change(), EVERY_S)
        self._made_at = None
        yield f"data: {await self.look()}\n\n"  # how the run ended, as far as that is known

    async def look(self) -> str:
        """The present frame as JSON, no older than a second."""
        async with self._lock:
            if self._made_at is None or self._now() - self._made_at >= 0.9 * EVERY_S:
                frame = await self._run.read(is_last=self._notifier.closed)
                self._text = frame.model_dump_json()
                self._made_at = self._now()
            return self._text
