"""Commands that show or change an active run."""

from __future__ import annotations

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


def logs(*parts: str, run: RunDir = None, lines: int = 20, follow: Flag = False) -> None:
    """Print what the parts of a run have written last.

    Parameters
    ----------
    parts
        learner, generator-0, services, redis, supervisor; default: all.
    lines
        This many of each part.
    follow
        Then print new lines until the run ends.
    """
    from deploy.operate.run_commands import show_logs

    show_logs(run, parts, lines=lines, follow=follow)


def scale_generators(generators_target: int, *, run: RunDir = None) -> None:
    """Run this many generators from now on; those that leave finish their work first.

    Parameters
    ----------
    generators_target
        How many.
    """
    from deploy.operate.run_commands import send

    send(run, lambda client: client.scale(generators_target))


def pause(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then wait."""
    from deploy.operate.run_commands import send

    send(run, lambda client: client.pause())


def resume(*, run: RunDir = None) -> None:
    """Go on after a pause."""
    from deploy.operate.run_commands import send

    send(run, lambda client: client.resume())


def stop(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then end the run; `sept run` resumes it."""
    from deploy.operate.run_commands import send

    send(run, lambda client: client.stop())


def checkpoint(*, run: RunDir = None) -> None:
    """Let the learner write a checkpoint when its round is done."""
    from deploy.operate.run_commands import send

    send(run, lambda client: client.checkpoint())


def rollback(weight_version: int, *, run: RunDir = None, yes: Flag = False) -> int:
    """Let the learner go back to its checkpoint of a version; what came later is lost.

    Parameters
    ----------
    weight_version
        Which version; the page shows those that have a checkpoint.
    yes
        Do not ask.
    """
    from deploy.operate.run_commands import confirmed, send

    if not confirmed(f"every version after {weight_version} will be lost", yes=yes):
        return exit_codes.FAILED
    send(run, lambda client: client.roll_back(weight_version))
    return exit_codes.OK
