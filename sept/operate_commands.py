"""Commands that show or change an active run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from deploy import exit_codes
from sept.arguments import Flag, RunDir


def status(*, run: RunDir = None, watch: Flag = False, json: Flag = False) -> None:
    """Show what a run is doing.

    Parameters
    ----------
    watch
        Show it until it ends.
    json
        Print the status snapshot as JSON.
    """
    from deploy.operate.run_commands import show_status, watch_status

    if watch:
        watch_status(run)
    else:
        show_status(run, as_json=json)


def page(*folders: Path, port: int = 0) -> None:
    """Show runs in a browser from their folders: active, finished and failed ones, also side by side.

    Parameters
    ----------
    folders
        Folders of runs, or folders that hold runs; default: runs.
    port
        Of this machine's loopback address; 0: a free one.
    """
    from deploy.operate.page import show_pages
    from sept.other_commands import print_line

    show_pages(folders, port=port, tell=print_line)


def logs(
    *parts: str,
    run: RunDir = None,
    lines: Annotated[int | None, Parameter(name=("--lines", "-n"))] = None,
    since: str = "",
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="")] = False,
    json: Flag = False,
) -> None:
    """Print what the parts of a run have written, all of them in one stream in the order of time.

    Parameters
    ----------
    parts
        learner, generator-0, services, redis, supervisor; default: all.
    lines
        Only the last ones; default: 50, or all with --since.
    since
        Only what was written since then: 30s, 10m, 2h, 3d ago, or a time such as 2026-01-31T08:00.
    follow
        Then print new lines until the run ends.
    json
        Print each line as a JSON object with part, time_s, level and text.
    """
    from deploy.operate.durations import point_in_time
    from deploy.operate.run_commands import show_logs

    since_s = point_in_time(since, time.time()) if since else None
    if lines is None and since_s is None:
        lines = 50
    show_logs(run, parts, lines=lines, since_s=since_s, follow=follow, as_json=json)


def scale_generators(generators_target: int, *, run: RunDir = None, yes: Flag = False) -> int:
    """Run this many generators from now on; those that leave finish their work first.

    Parameters
    ----------
    generators_target
        How many; asks back when the machine hardly holds them.
    yes
        Do not ask.
    """
    from deploy.operate.run_commands import check_generators_target, confirmed, send, tell

    doubt = check_generators_target(generators_target)
    if doubt and not confirmed(doubt, yes=yes):
        return exit_codes.FAILED
    send(run, lambda client: client.scale(generators_target))
    tell(f"{generators_target} generators from now on: they start in up to a minute, or leave after their work")
    return exit_codes.OK


def pause(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then wait."""
    from deploy.operate.run_commands import send, tell

    send(run, lambda client: client.pause())
    tell("pausing: the round that is being trained is finished, no new task starts; `sept resume` goes on")


def resume(*, run: RunDir = None) -> None:
    """Go on after a pause."""
    from deploy.operate.run_commands import send, tell

    send(run, lambda client: client.resume())
    tell("going on; a request to stop is withdrawn, too")


def stop(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then end the run; `sept run` resumes it."""
    from deploy.operate.run_commands import send, tell

    send(run, lambda client: client.stop())
    tell("stopping: the run ends when its round is trained and saved; `sept run` resumes it")


def checkpoint(*, run: RunDir = None) -> None:
    """Let the learner write a checkpoint when its round is done."""
    from deploy.operate.run_commands import send, tell

    send(run, lambda client: client.checkpoint())
    tell("a checkpoint is written when the round is done, at once while the run is paused")


def rollback(weight_version: int, *, run: RunDir = None, yes: Flag = False) -> int:
    """Let the learner go back to its checkpoint of a version; what came later is lost.

    Parameters
    ----------
    weight_version
        Which version; the page shows those that have a checkpoint.
    yes
        Do not ask.
    """
    from deploy.operate.run_commands import check_rollback, confirmed, send, tell

    check_rollback(run, weight_version)
    if not confirmed(f"every version after {weight_version} will be lost", yes=yes):
        return exit_codes.FAILED
    send(run, lambda client: client.roll_back(weight_version))
    tell(f"going back to version {weight_version} when the round is done; `sept status` shows it")
    return exit_codes.OK
