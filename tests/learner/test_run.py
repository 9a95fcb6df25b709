"""How a learner and an evaluator end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from learner.run import stop_on_signals

INSISTING = """
import signal
from learner import run
run.SAME_STOP_S = 0.0
run.stop_on_signals(lambda: None)
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGINT)
raise SystemExit("the second signal changed nothing")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_a_copy_of_it_changes_nothing(
    number: signal.Signals, signal_handlers: None
) -> None:
    """systemd signals every process of a unit, and the supervisor signals its parts."""
    asked: list[bool] = []
    stop_on_signals(lambda: asked.append(True))
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert asked == [True]


def test_a_later_signal_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", INSISTING], timeout=120, check=False)
    assert done.returncode == -signal.SIGINT
