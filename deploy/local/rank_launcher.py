"""Starts one `sept` command as several processes that train together.

The launcher ends when all of them have ended, and all of them end when one dies or the launcher does: the supervisor
sees one part. torchrun does the same, but with an unauthenticated store on every interface whose
entries it unpickles, with its own code in place of the exit code, and with processes that outlive it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy import exit_codes
from deploy.local.processes import die_with_parent
from deploy.same_code import sept_command, with_same_code
from learner.parallel.launch_env import RANK, SIZE, STORE


def is_rank() -> bool:
    """Whether this process was started by `start_ranks`."""
    return RANK in os.environ


def start_ranks(command: Sequence[str], count: int) -> int:
    """Run `sept COMMAND` as `count` ranks on this machine; the exit code of the first that failed, else 0.

    A signal's code is 128 + its number. SIGTERM and SIGINT are passed on to rank 0, which the others follow.
    """
    launcher = os.getpid()
    with tempfile.TemporaryDirectory(prefix="sept-ranks-") as folder:
        shared = {SIZE: str(count), STORE: str(Path(folder) / "store"), "OMP_NUM_THREADS": str(_threads(count))}
        children = [
            subprocess.Popen(
                sept_command(*command),
                env={**with_same_code(os.environ), **shared, RANK: str(rank)},
                preexec_fn=lambda: die_with_parent(launcher, signal.SIGKILL),
            )
            for rank in range(count)
        ]
        before = {
            number: signal.signal(number, lambda number, _frame: children[0].send_signal(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return _first_failure(children)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for child in children:
                child.kill()
                child.wait()


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until one has failed or all have ended well."""
    running = {os.pidfd_open(child.pid): child for child in children}
    try:
        while running:
            ended, _, _ = select.select(list(running), [], [])
            for handle in ended:
                os.close(handle)
                if code := running.pop(handle).wait():
                    return code if code > 0 else 128 - code
    finally:
        for handle in running:
            os.close(handle)
    return exit_codes.OK


def _threads(count: int) -> int:
    """Threads on a CPU for each of `count` processes."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(given) if given.isdigit() else len(os.sched_getaffinity(0))) // count)
