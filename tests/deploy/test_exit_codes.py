"""Exit codes that scripts and the supervisor rely on, for every error there is."""

from __future__ import annotations

import signal

import pytest

from deploy import exit_codes
from learner.outcome import Outcome
from services import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.ModelError("x"), 3),
        (errors.ContractError("x"), 3),
        (errors.CheckpointError("x"), 3),
        (errors.UnavailableError("x"), 4),
        (errors.DeadlineError("who", "what", 1.0), 4),
        (errors.WeightError("x"), 1),
        (errors.DigestError("x"), 1),
        (errors.EngineError("x"), 1),
        (errors.SeptError("x"), 1),
        (ValueError("x"), 1),
    ],
)
def test_every_error_has_its_code(error: Exception, code: int) -> None:
    assert exit_codes.code_of(error) == code
    assert (code in exit_codes.PERMANENT) is (code in (2, 3)), "what starting again would not mend"


def test_a_signal_and_an_outcome_have_theirs() -> None:
    assert [exit_codes.of_signal(number) for number in (None, signal.SIGINT, signal.SIGTERM)] == [0, 130, 143]
    assert {outcome: exit_codes.of_outcome(outcome) for outcome in Outcome} == {
        Outcome.FINISHED: 0,
        Outcome.STOPPED: 0,
        Outcome.INTERRUPTED: 143,
    }
    assert (exit_codes.in_words(0), exit_codes.in_words(3), exit_codes.in_words(-9)) == (
        "exit code 0",
        "exit code 3",
        "killed by SIGKILL",
    )
