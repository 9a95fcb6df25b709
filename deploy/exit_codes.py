"""Exit codes of every `sept` command, which scripts and the supervisor read."""

from __future__ import annotations

import signal

from learner.outcome import Outcome
from services.errors import (
    CheckpointError,
    ConfigError,
    ContractError,
    DataError,
    DeadlineError,
    LostRankError,
    ModelError,
    SeptError,
    UnavailableError,
)

OK = 0
FAILED = 1
"""An error of our own."""
BAD_CONFIG = 2
"""A setting or argument."""
BAD_INPUT = 3
"""A model, data file, message or checkpoint."""
UNAVAILABLE = 4
"""A peer does not answer, or a wait ended at its deadline."""
LOST_RANK = 5
"""Of a learner's rank: another rank has ended, and its exit code says why."""
NO_READER = 141
"""128 + SIGPIPE: whoever read the output has left."""
STOPPED = 143
"""128 + SIGTERM: a signal ended the work too early; the supervisor starts the part again unless it sent the signal."""

PERMANENT = (BAD_CONFIG, BAD_INPUT)
"""Starting again would fail in the same way."""

_CODES: tuple[tuple[tuple[type[SeptError], ...], int], ...] = (
    ((ConfigError,), BAD_CONFIG),
    ((DataError, ModelError, ContractError, CheckpointError), BAD_INPUT),
    ((LostRankError,), LOST_RANK),
    ((UnavailableError, DeadlineError), UNAVAILABLE),
)


def code_of(error: Exception) -> int:
    """The exit code of the error."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


def of_signal(number: signal.Signals | None) -> int:
    """The exit code of a command that the signal stopped, as shells write it; OK without one."""
    return OK if number is None else 128 + number


def of_outcome(outcome: Outcome) -> int:
    """The exit code of a learner or an evaluator that ended without an error."""
    return STOPPED if outcome is Outcome.INTERRUPTED else OK


def in_words(code: int) -> str:
    """3 -> 'exit code 3', -9 -> 'killed by SIGKILL'."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
