"""Every error this project raises on purpose.

    SeptError
    ├── ConfigError          a setting is unknown, out of range or in conflict with another
    ├── DataError            a prompt or benchmark file cannot be read as what it should be
    ├── ModelError           a model folder is incomplete or does not fit the task
    ├── ContractError        a message or manifest from outside is not what its contract says
    ├── DeadlineError        a wait ended without what it waited for
    ├── UnavailableError     a peer (Redis, the endpoint, a part) cannot be reached or refuses
    │   ├── FencedError      another learner has taken over the run
    │   └── LostRankError    another rank of the learner has ended
    ├── WeightError          a weight version is missing, incomplete or inconsistent
    │   ├── DigestError      bytes do not have the digest their manifest promises
    │   └── VersionNotFoundError
    ├── CheckpointError      no checkpoint can be loaded, or one cannot be written
    └── EngineError          the inference engine died or refused a request

A message says what happened, the value and the limit; `hint` says what to do about it.
"""


class SeptError(Exception):
    """Base of all deliberate errors: `message` says what happened, `hint` the remedy."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class ConfigError(SeptError):
    """A setting is unknown, out of range or in conflict with another."""


class DataError(SeptError):
    """A prompt or benchmark file cannot be read as what it should be."""


class ModelError(SeptError):
    """A model folder is incomplete or does not fit the task."""


class ContractError(SeptError):
    """A message or manifest from outside is not what its contract says."""


class DeadlineError(SeptError):
    """A wait ended without what it waited for."""

    def __init__(self, who: str, what: str, seconds: float, *, hint: str = "") -> None:
        super().__init__(f"waited {seconds:.1f} s for {who}: {what}", hint=hint)
        self.who = who
        self.what = what
        self.seconds = seconds


class UnavailableError(SeptError):
    """A peer (Redis, the endpoint, a part) cannot be reached or refuses."""


class FencedError(UnavailableError):
    """Another learner has taken over the run: this one may not write any more."""


class LostRankError(UnavailableError):
    """Another rank of the learner has ended; that one says why."""


class WeightError(SeptError):
    """A weight version is missing, incomplete or inconsistent."""


class DigestError(WeightError):
    """Bytes do not have the digest their manifest promises."""


class VersionNotFoundError(WeightError):
    """The store holds no such version (never published, or already retired)."""


class CheckpointError(SeptError):
    """No checkpoint can be loaded, or one cannot be written."""


class EngineError(SeptError):
    """The inference engine died or refused a request."""
