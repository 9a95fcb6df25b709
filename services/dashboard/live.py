"""The frame that every open page gets once a second, made once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import structlog
from pydantic import BaseModel
from redis.exceptions import RedisError

from services.api.change_notifier import ChangeNotifier
from services.api.control import ControlRequests
from services.api.status import StatusReader
from services.bottleneck import Bottleneck
from services.contracts import StatusSnapshot
from services.dashboard.timeseries import TimeSeries
from services.errors import SeptError
from services.streams.control import AsyncControl

EVERY_S = 1.0

log = structlog.get_logger()


class Frame(BaseModel):
    """One look at the run. Without `status`, `error` says why there is none."""

    time: float
    """Unix seconds."""
    error: str = ""
    status: StatusSnapshot | None = None
    requests: ControlRequests | None = None
    bottleneck: Bottleneck | None = None
    recorded: int = 0
    """Rounds in metrics.jsonl."""
    generation: int = 0
    """Changes when metrics.jsonl was cut back."""


class Live:
    """Shares one look at the run among any number of listeners; nobody listening costs nothing."""

    def __init__(
        self,
        reader: StatusReader,
        control: AsyncControl,
        rounds: TimeSeries,
        notifier: ChangeNotifier,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._control = control
        self._rounds = rounds
        self._notifier = notifier
        self._now = now
        self._lock = asyncio.Lock()
        self._frame = Frame(time=0.0)
        self._text = ""
        self._made_at: float | None = None

    async def frames(self) -> AsyncIterator[str]:
        """Server-sent events, about one a second, until the app goes down."""
        sent = ""
        while not self._notifier.closed:
            text = (await self.look())[1]
            if text != sent:
                yield f"data: {text}\n\n"
                sent = text
            await self._notifier.wait(self._notifier.next_change(), EVERY_S)
        self._made_at = None
        yield f"data: {(await self.look())[1]}\n\n"  # how the run ended, as far as Redis still says so

    async def look(self) -> tuple[Frame, str]:
        """The present frame and its JSON, no older than a second."""
        async with self._lock:
            if self._made_at is None or self._now() - self._made_at >= 0.9 * EVERY_S:
                self._frame = await self._read()
                self._text = self._frame.model_dump_json()
                self._made_at = self._now()
            return self._frame, self._text

    async def _read(self) -> Frame:
        try:
            status, bottleneck = await self._reader.read_with_bottleneck()
            state = await self._control.state()
            await asyncio.to_thread(self._rounds.refresh)
        except (SeptError, RedisError) as error:
            reason = error.message if isinstance(error, SeptError) else f"Redis: {type(error).__name__}"
            log.warning("status_not_read", reason=reason)
            return Frame(time=time.time(), error=reason)
        return Frame(
            time=time.time(),
            status=status,
            requests=ControlRequests.of(state),
            bottleneck=bottleneck,
            recorded=self._rounds.lines,
            generation=self._rounds.generation,
        )
