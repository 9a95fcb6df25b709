"""`sept page`: the pages of runs from their folders, whether they are active or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import endpoints
from deploy.endpoints import Endpoints
from deploy.operate.page_address import page_lines
from services.dashboard.run_list import RunList, search
from services.dashboard.runs_app import create_runs_app
from services.errors import ConfigError
from services.net import LOOPBACK, listen
from services.run_folder import RUNS, RunFolder
from services.server import run_app

DRAIN_S = 2.0


def show_pages(folders: Sequence[Path], *, port: int, tell: Callable[[str], None]) -> None:
    """Serve the pages of the runs in and below the folders on loopback until a signal; `tell` gets the address.

    ConfigError when there is no such folder; UnavailableError when the port is taken.
    """
    roots = [folder.resolve() for folder in folders or [RUNS]]
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"there is no folder {root}", hint="name the folder of a run, or one that holds runs")
    found = len(search(roots)[0])
    app = create_runs_app(RunList(roots), live_url)

    def listening(url: str) -> None:
        tell(f"{found} run{'' if found == 1 else 's'} below {', '.join(map(str, roots))}; Ctrl-C ends the page")
        for line in page_lines(Endpoints(redis_url="", services_url=url)):
            tell(line)

    with listen(LOOPBACK, port, setting="--port") as listener:
        asyncio.run(run_app(app, listener, drain_s=DRAIN_S, listening=listening))


def live_url(folder: RunFolder) -> str:
    """Where the services of an active run show its page; empty when this user may not know."""
    try:
        found = endpoints.read(folder)
    except ConfigError:
        return ""
    return f"{found.services_url.rstrip('/')}/" if found is not None else ""
