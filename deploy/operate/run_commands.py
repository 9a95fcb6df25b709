"""What the commands about an active run do: find it, show it, send it a request."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.prompt import Confirm
from rich.text import Text

from deploy import endpoints
from deploy.load_settings import values_of_file
from deploy.locks import is_run_locked
from deploy.operate.client import RunClient
from deploy.operate.ending import ending
from deploy.operate.log_tail import LogTail
from deploy.operate.page_address import page_lines
from deploy.operate.progress import REFRESH_S, Progress, headline, parts_table, rounds_table
from deploy.placement import visible_gpus
from learner.model_folder.files import files_left_out
from services.contracts import StatusSnapshot
from services.dashboard.log_lines import LogLine
from services.errors import ConfigError, UnavailableError
from services.run_folder import RUNS, RunFolder
from services.streams.control import MAX_GENERATORS

T = TypeVar("T")

_OWN_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def find_run(folder: Path | None, *, runs: Path = RUNS) -> RunFolder:
    """The named run, else the one under runs/ that was started last; ConfigError when there is none."""
    if folder is not None:
        found = RunFolder(folder)
        if not found.identity.exists():
            raise ConfigError(f"{folder} is not a run's folder", hint="give the run.dir of a run that was started")
        return found
    # Of several active runs, or of none, the one that was started last is meant.
    paths = sorted(runs.iterdir()) if runs.is_dir() else []
    candidates = [run for path in paths if (run := RunFolder(path)).identity.exists()]
    if not candidates:
        raise ConfigError(f"there is no run under {runs.resolve()}", hint="name its folder with --run")
    return max(candidates, key=lambda run: (is_run_locked(run), _started(run)))


def _started(run: RunFolder) -> float:
    return (run.config if run.config.exists() else run.identity).stat().st_mtime


def files_not_exported(run: RunFolder) -> dict[str, str]:
    """Name -> why an export of the run lacks it: files of the model that the run started from, where that is here.

    The weights that the run was started with are not among them: the export has the trained ones in their place.
    """
    model = values_of_file(run.config).get("model", {}).get("path", "") if run.config.exists() else ""
    if not model or not Path(model).is_dir():
        return {}
    left_out = files_left_out(Path(model))
    return {name: reason for name, reason in left_out.items() if not _OWN_WEIGHTS.fullmatch(name)}


def client_of(folder: RunFolder) -> RunClient:
    """A client of the folder's run, whose first request is refused when another run answers there.

    UnavailableError when the run is not active.
    """
    found = endpoints.read(folder)
    if found is None:
        raise endpoints.not_active(folder)
    return RunClient(found, of_run=folder)


def send(run: Path | None, request: Callable[[RunClient], Awaitable[T]]) -> T:
    """Send one request to the run; returns its answer."""

    async def ask() -> T:
        async with client_of(find_run(run)) as client:
            return await request(client)

    return asyncio.run(ask())


def tell(text: str) -> None:
    """Print what will come of a request."""
    Console(highlight=False).print(text, soft_wrap=True)


def check_generators_target(target: int) -> str:
    """Why a person should think twice about so many generators; empty: no reason. ConfigError for a number that no run
    takes."""
    if not 0 <= target <= MAX_GENERATORS:
        raise ConfigError(
            f"{target} generators are not possible, a run takes 0 to {MAX_GENERATORS}",
            hint="0 lets the running ones finish and starts none",
        )
    gpus, cores = len(visible_gpus()), len(os.sched_getaffinity(0))
    if target > (gpus or cores):
        has = f"{gpus} GPUs" if gpus else f"{cores} cores"
        return f"{target} generators on this machine share its {has}"
    return ""


def check_rollback(run: Path | None, weight_version: int) -> None:
    """ConfigError unless there is an earlier checkpoint of that version to go back to."""
    folder = find_run(run)
    held, newest = folder.checkpointed(), max((metrics.weight_version for metrics in folder.rounds()), default=0)
    if weight_version not in held:
        raise ConfigError(
            f"there is no checkpoint of version {weight_version}",
            hint=f"there are: {', '.join(map(str, held)) or 'none'}; checkpoint.keep says how many are kept",
        )
    if weight_version == newest:
        raise ConfigError(f"the run is at version {weight_version} already", hint="go back to an earlier one")


def show_status(run: Path | None, *, as_json: bool) -> None:
    """Print the run's status; of a run that is not active, its last rounds."""
    folder = find_run(run)
    console = Console()
    try:
        snapshot = asyncio.run(_snapshot(folder))
    except UnavailableError as error:
        if as_json or is_run_locked(folder):
            raise
        console.print(Text(error.message), *map(Text, ending(folder)), sep="\n", soft_wrap=True)
    else:
        if as_json:
            sys.stdout.write(snapshot.model_dump_json(indent=2) + "\n")
            return
        console.print(headline(snapshot))
        if (found := endpoints.read(folder)) is not None:
            console.print(*page_lines(found), sep="\n", highlight=False, soft_wrap=True)
        console.print(parts_table(snapshot))
    console.print(rounds_table(list(folder.rounds())))


def watch_status(run: Path | None) -> None:
    """Show the run until it ends."""
    asyncio.run(_watch(find_run(run), Console()))


async def _watch(folder: RunFolder, console: Console) -> None:
    async with client_of(folder) as client:
        with Progress(folder, client, console) as progress:
            while is_run_locked(folder):
                await progress.refresh()
                await asyncio.sleep(REFRESH_S)


def show_logs(
    run: Path | None, parts: Sequence[str], *, lines: int | None, since_s: float | None, follow: bool, as_json: bool
) -> None:
    """Print the end of the parts' logs in the order of time: the last `lines` (None: all) of what was written at or
    after `since_s` in Unix seconds. `follow`: then new lines until the run ends."""
    folder = find_run(run)
    tail, console = LogTail(folder, parts), Console(highlight=False)
    following = tail.follow(lambda: is_run_locked(folder)) if follow else ()
    for line in chain(tail.last(lines=lines, since_s=since_s), following):
        if as_json:
            sys.stdout.write(json.dumps(dataclasses.asdict(line), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            console.print(log_line(line), soft_wrap=True)


def log_line(line: LogLine) -> Text:
    """A line of a log as people read it: when, which part, and what it wrote."""
    at = "" if line.time_s is None else time.strftime("%m-%d %H:%M:%S", time.localtime(line.time_s))
    level = {"info": ("", ""), "warning": ("warning: ", "yellow"), "error": ("error: ", "red")}[line.level]
    return Text.assemble((f"{at:14}  {line.part:11}  ", "dim"), level, Text.from_ansi(line.text))


def confirmed(what: str, *, yes: bool) -> bool:
    """Whether a person confirms what cannot be undone; `yes`: they did already. ConfigError without a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}, and nobody is here to confirm it", hint="add --yes")
    return Confirm.ask(f"{what}. Go on?", default=False)


async def _snapshot(folder: RunFolder) -> StatusSnapshot:
    async with client_of(folder) as client:
        return await client.status()
