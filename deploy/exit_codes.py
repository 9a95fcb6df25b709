"""Exit codes of every `sept` command: what they tell scripts, and the supervisor about a part."""

from __future__ import annotations

import signal

from learner.outcome import Outcome
from services.errors import (
    CheckpointError,
    ConfigError,
    ContractError,
    DataError,
    DeadlineError,
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
STOPPED = 143
"""A signal ended the work before its end, as 128 + SIGTERM says everywhere; to be started again unless it was meant."""

PERMANENT = (BAD_CONFIG, BAD_INPUT)
"""Starting again would meet the same config and the same data again."""

_CODES: tuple[tuple[tuple[type[SeptError], ...], int], ...] = (
    ((ConfigError,), BAD_CONFIG),
    ((DataError, ModelError, ContractError, CheckpointError), BAD_INPUT),
    ((UnavailableError, DeadlineError), UNAVAILABLE),
)


def code_of(error: Exception) -> int:
    """The exit code that stands for the error."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


def of_outcome(outcome: Outcome) -> int:
    """The exit code of a learner or an evaluator that ended without an error."""
    return STOPPED if outcome is Outcome.INTERRUPTED else OK


def in_words(code: int) -> str:
    """3 -> 'exit code 3', -9 -> 'killed by SIGKILL'."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
