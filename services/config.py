"""Settings of what every part shares: the run, Redis, the HTTP services, weight sync, deadlines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, SecretStr
from pydantic_core import core_schema

from services.run_folder import RUNS


def listed(value: Any) -> Any:
    """Text with commas, as from the command line, is a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class OneOf:
    """Annotates a text setting whose choices are known only when the code runs, as `Literal` does for written ones.

    algorithm: Annotated[str, OneOf(ALGORITHMS)]
    """

    def __init__(self, choices: Iterable[str]) -> None:
        self.choices = tuple(choices)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.choices))


class Section(BaseModel):
    """Base of all config sections: immutable, unknown keys and infinity refused, field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class RunConfig(Section):
    """[run]: where this run lives and what makes it repeatable."""

    dir: Path = RUNS / "default"
    """Folder of everything the run writes; starting again with the same folder resumes it."""
    seed: int = Field(default=0, ge=0)
    """Seeds the order of the prompts and everything else that is drawn."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(listed)] = ()
    """Where every line of metrics.jsonl goes, too: tensorboard, wandb, mlflow; each needs its package."""


class RedisConfig(Section):
    """[redis]: the queue between generators and learner."""

    url: SecretStr | None = None
    """redis[s]://[user:password@]host:port/db; unset: `sept run` starts an embedded server in the run folder."""
    generator_url: SecretStr | None = None
    """The same server for generators, with a user that may do only what they need; unset: redis.url."""
    lease_s: float = Field(default=30.0, gt=0)
    """A task whose generator has not renewed it for this long goes to another generator."""


class ServicesConfig(Section):
    """[services]: the HTTP app with weight sync, status and the page."""

    host: str = "127.0.0.1"
    """Address to bind; anything but loopback requires a token."""
    port: int = Field(default=8400, ge=0, le=65535)
    """Port to bind; 0 takes a free one."""
    url: str | None = None
    """How the other parts reach the services; unset: http://host:port."""
    token: SecretStr | None = None
    """Bearer token for everything but /healthz, and what a part itself sends; required beyond loopback."""
    generator_token: SecretStr | None = None
    """Token that pulls weights and reads the status, for generators; unset: `sept run` draws one."""
    watch_token: SecretStr | None = None
    """Token that reads the page, metrics, events and answers, and changes nothing."""
    tls_cert: Path | None = None
    """PEM file with the services' certificate: served with tls_key, trusted by the other parts."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key; the services then speak HTTPS."""


class WeightSyncConfig(Section):
    """[weight_sync]: versions on disk and on the wire."""

    canary_prompts: int = Field(default=2, ge=0, le=64)
    """Prompts whose log-probabilities every version carries and every generator must reproduce; 0 is off."""


class DeadlinesConfig(Section):
    """[deadlines]: how long each wait may last before it fails by name."""

    startup_s: float = Field(default=600.0, gt=0)
    """For a part to come up: Redis to answer, version 0 to be published, an engine to start."""
    rollouts_s: float = Field(default=1800.0, gt=0)
    """For the learner to receive the next rollout of its round."""
    weights_s: float = Field(default=1800.0, gt=0)
    """For a generator to receive the version that its leased task asks for."""
    drain_s: float = Field(default=20.0, gt=0)
    """For a part to finish its work after SIGTERM."""


LogFormat = Literal["console", "json"]
