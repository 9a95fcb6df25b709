"""What a person sees while a run is active: a live table on a terminal, one line a round elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from deploy.operate.client import RunClient
from deploy.operate.durations import in_words
from deploy.operate.ending import pass_at_1
from services.contracts import Heartbeat, RoundMetrics, StatusSnapshot
from services.errors import SeptError
from services.run_folder import RunFolder

REFRESH_S = 1.0
ROUNDS_SHOWN = 8
NARROW: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0)}
"""Tables that fit into 80 columns."""


class Progress:
    """Shows a run until closed.

    with Progress(folder, client, console) as progress:
        progress.note("generator-0 died")            # above the table
        await progress.follow()                      # until cancelled
    """

    def __init__(self, folder: RunFolder, client: RunClient, console: Console) -> None:
        self._folder = folder
        self._client = client
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown = sum(1 for _ in folder.rounds())

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def tell(self, lines: Sequence[str]) -> None:
        """Print what a person should not miss, above the table."""
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)

    async def follow(self) -> None:
        """Refresh every second until cancelled; what cannot be read or shown now is left out."""
        async for _ in _every(REFRESH_S):
            with contextlib.suppress(OSError):
                await self.refresh()

    async def refresh(self) -> None:
        """Update what is shown once."""
        rounds = list(self._folder.rounds())
        if self._live is None:
            total = self._folder.rounds_total
            for metrics in rounds[self._shown :]:
                self._console.print(round_line(metrics, total), soft_wrap=True)
            self._shown = len(rounds)
            return
        snapshot = None
        with contextlib.suppress(SeptError):  # the services start or restart: the rounds are shown all the same
            snapshot = await self._client.status()
        self._live.update(render(snapshot, rounds), refresh=True)


async def _every(seconds: float) -> AsyncIterator[None]:
    while True:
        yield
        await asyncio.sleep(seconds)


def round_line(metrics: RoundMetrics, total: int) -> str:
    """A round in one line: when it ended, which of how many, pass@1 of its version where that was measured."""
    quality = "".join(
        f"{'' if one.weight_version else 'untrained '}pass@1 {pass_at_1(one):.1%} at {one.temperature:g}  "
        for one in metrics.evaluations
    )
    at = time.strftime("%H:%M:%S", time.localtime(metrics.time))
    return (
        f"{at}  round {metrics.round} ({metrics.round + 1} of {max(total, metrics.round + 1)})  {quality}"
        f"version {metrics.weight_version}  loss {metrics.loss:.4f}  "
        f"tau_s {metrics.tau_s:.2f}  generators {metrics.generator_tokens_per_s:.0f} tok/s  "
        f"learner {metrics.learner_tokens_per_s:.0f} tok/s  waited {metrics.learner_wait_s:.1f} s  "
        f"staleness {metrics.staleness_mean:.2f} (max {metrics.staleness_max})  "
        f"sync {in_bytes(metrics.sync_bytes)} of {in_bytes(metrics.sync_full_bytes)}"
    )


def render(snapshot: StatusSnapshot | None, rounds: Sequence[RoundMetrics]) -> RenderableType:
    """The run's state, its parts, its last rounds."""
    if snapshot is None:
        return Group(Text("waiting for the services to answer", style="dim"), rounds_table(rounds))
    return Group(headline(snapshot), parts_table(snapshot), rounds_table(rounds))


def headline(snapshot: StatusSnapshot) -> Text:
    """State, progress and queue in one line."""
    detail = f" ({snapshot.detail})" if snapshot.detail else ""
    left = "" if snapshot.seconds_left is None else f"  about {in_words(snapshot.seconds_left)} left"
    of = f" of {snapshot.rounds_total}" if snapshot.rounds_total else ""  # before the learner has read the prompts
    return Text.assemble(
        (f"{snapshot.run_id}  ", "bold"),
        f"{snapshot.state}{detail}  round {snapshot.round}{of}{left}  "
        f"version {snapshot.weight_version if snapshot.weight_version is not None else '-'}  "
        f"queue: {snapshot.tasks_queued} tasks, {snapshot.tasks_leased} leased, "
        f"{snapshot.rollouts_queued} rollouts, {snapshot.dead_letters} dead letters",
    )


def parts_table(snapshot: StatusSnapshot) -> Table:
    """Learner and generators: what each does and how fast."""
    part = Column("part", no_wrap=True)
    table = Table(part, "state", "version", "in flight", "tokens/s", "pause", "busy", "message", **NARROW)
    starting = {part.part_id: f"{part.doing}, {in_words(part.for_s)}" for part in snapshot.starting}
    if snapshot.learner is not None:
        _add_part(table, snapshot.learner, snapshot.learner_lost, starting.pop(snapshot.learner.part_id, ""))
    for generator in snapshot.generators:
        _add_part(table, generator.heartbeat, generator.lost, starting.pop(generator.heartbeat.part_id, ""))
    for part_id, doing in starting.items():
        table.add_row(part_id, doing, *"-----", "")
    return table


def _add_part(table: Table, beat: Heartbeat, lost: bool, starting: str) -> None:
    state = Text(starting or beat.state.replace("_", " "))  # breaks at spaces
    if lost and not starting:
        state = Text("lost", style="red")
    busy = sum(beat.shares.get(name, 0.0) for name in ("generating", "training"))
    pause = f"{beat.pause_ms:.0f} ms" if beat.updates else "-"
    version = "-" if beat.weight_version is None else str(beat.weight_version)
    numbers = (version, str(beat.in_flight), f"{beat.tokens_per_s:.0f}", pause, f"{busy:.0%}")
    table.add_row(beat.part_id, state, *numbers, beat.message or beat.chat_url)


def rounds_table(rounds: Sequence[RoundMetrics]) -> Table:
    """The last rounds, newest at the bottom."""
    table = Table("round", "loss", "tau_s", "gen tok/s", "learn tok/s", "wait", "staleness", "sync", **NARROW)
    for metrics in rounds[-ROUNDS_SHOWN:]:
        table.add_row(
            str(metrics.round),
            f"{metrics.loss:.4f}",
            f"{metrics.tau_s:.2f}",
            f"{metrics.generator_tokens_per_s:.0f}",
            f"{metrics.learner_tokens_per_s:.0f}",
            f"{metrics.learner_wait_s:.1f} s",
            f"{metrics.staleness_mean:.2f} / {metrics.staleness_max}",
            in_bytes(metrics.sync_bytes),
        )
    return table


def in_bytes(count: float) -> str:
    """1536 -> '1.5 kB'; powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
