"""The ways in which a learner or an evaluator ends without an error."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    FINISHED = "finished"
    """The last round, or the last answer of an evaluation, is done."""
    STOPPED = "stopped"
    """Somebody requested a stop after the round; starting again goes on."""
    INTERRUPTED = "interrupted"
    """A signal ended the work early; whoever keeps the process running starts it again."""
