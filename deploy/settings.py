"""The settings of a run: all sections, what must not contradict, what must not change within a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from blake3 import blake3
from pydantic import BaseModel, model_validator
from pydantic.fields import FieldInfo

from generator.config import GeneratorConfig
from learner.algorithm_list import ALGORITHMS
from learner.config import ANY_VOTE_SHARE, LearnerSettings
from services.config import (
    RedisConfig,
    ServicesConfig,
)
from services.errors import ConfigError
from services.net import is_loopback, reachable_url, split_address

ENV_PREFIX = "SEPT_"
ENV_DELIMITER = "__"

FIXED_IN_A_RUN = (
    "run.seed",
    "model.path",
    "data.path",
    "data.split",
    "data.limit",
    "data.max_prompt_tokens",
    "data.repeats",
    "data.vote_share",
    "sampling.rollouts_per_prompt",
    "training.algorithm",
    "training.data",
    "training.prompts_per_round",
    "training.steps_per_round",
    "training.optimizer",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
)
"""Changing one of these would make the rounds of one run folder belong to two different runs."""


class Settings(LearnerSettings):
    """All sections of a run's configuration."""

    generator: GeneratorConfig = GeneratorConfig()
    redis: RedisConfig = RedisConfig()
    services: ServicesConfig = ServicesConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        conflict = next(_conflicts(self), None)
        if conflict is not None:
            raise ValueError(conflict)
        return self


def _conflicts(settings: Settings) -> Iterator[str]:
    """Contradictions between sections; each line names both keys, their values and what to do."""
    algorithm = ALGORITHMS[settings.training.algorithm]
    if settings.sampling.rollouts_per_prompt < algorithm.smallest_group:
        yield (
            f"training.algorithm ({algorithm.name}) compares the rollouts of a prompt, sampling.rollouts_per_prompt is "
            f"{settings.sampling.rollouts_per_prompt}: set it to {algorithm.smallest_group} or more"
        )
    if settings.data.vote_share != ANY_VOTE_SHARE:
        if settings.sampling.rollouts_per_prompt < 2:
            yield (
                f"data.vote_share {settings.data.vote_share} compares the rollouts of a prompt, and "
                f"sampling.rollouts_per_prompt is {settings.sampling.rollouts_per_prompt}: set it to 2 or more"
            )
        if settings.training.data == "fixed":
            yield (
                f"data.vote_share {settings.data.vote_share} chooses prompts by their newest answers, and "
                "training.data is fixed: set it to online"
            )
    if settings.evaluation.every_rounds and not settings.evaluation.benchmarks:
        yield (
            f"evaluation.every_rounds is {settings.evaluation.every_rounds} and evaluation.benchmarks names none: "
            "name some, or set evaluation.every_rounds to 0"
        )
    if settings.generator.chat and settings.generator.engine != "vllm":
        yield (
            f"generator.chat ({settings.generator.chat}) needs generator.engine vllm, and it is "
            f"{settings.generator.engine}: a scripted engine has nothing to say"
        )
    yield from _open_addresses(settings)
    yield from _roles(settings)


def _open_addresses(settings: Settings) -> Iterator[str]:
    """Addresses that other machines reach, without a token."""
    if token_of(settings) is not None:
        return
    chat = settings.generator.chat
    if chat and not is_loopback(split_address(chat)[0]):
        yield (
            f"generator.chat ({settings.generator.chat}) is not loopback and services.token is not set: set "
            f"{ENV_PREFIX}SERVICES{ENV_DELIMITER}TOKEN to a secret, or bind to 127.0.0.1"
        )
    if not is_loopback(settings.services.host):
        yield (
            f"services.host ({settings.services.host}) is not loopback and services.token is not set: set "
            f"{ENV_PREFIX}SERVICES{ENV_DELIMITER}TOKEN to a secret, or bind to 127.0.0.1"
        )


def _roles(settings: Settings) -> Iterator[str]:
    """Tokens and certificates that do not fit together."""
    services = settings.services
    given = {
        f"services.{name}": token.get_secret_value()
        for name in ("token", "generator_token", "watch_token")
        if (token := getattr(services, name))
    }
    if given and "services.token" not in given:
        yield (
            f"{next(iter(given))} is set and services.token is not, so everybody may steer the run: set "
            f"{ENV_PREFIX}SERVICES{ENV_DELIMITER}TOKEN to a secret, too"
        )
    for one, other in itertools.combinations(given, 2):
        if given[one] == given[other]:
            yield f"{one} and {other} are the same secret, and a token has one role: give each its own"
    if services.tls_key is not None and services.tls_cert is None:
        yield (
            f"services.tls_key ({services.tls_key}) is set and services.tls_cert is not: name the certificate that "
            "belongs to it, or unset the key"
        )


def services_url(settings: Settings) -> str:
    """How other parts reach the services."""
    services = settings.services
    return services.url or reachable_url(services.host, services.port, tls=services.tls_key is not None)


def token_of(settings: Settings) -> str | None:
    """The token that this part sends to the services, as text; None also for an empty one."""
    return settings.services.token.get_secret_value() if settings.services.token else None


def redis_url(settings: Settings) -> str:
    """The address of Redis, password included; ConfigError when there is none to join."""
    if settings.redis.url is None:
        raise ConfigError(
            f"redis.url is not set, and no run is active in {settings.run.dir}",
            hint="start the run with `sept run`, or set redis.url to the Redis that the other parts use",
        )
    return settings.redis.url.get_secret_value()


def digests_for_ranks(settings: Settings) -> dict[str, str]:
    """Section -> BLAKE3 of its values, of the sections that all ranks of a learner must agree on.

    A local model may be elsewhere on another host: it counts by its config.json and the sizes of its files.
    """
    model = settings.model.model_copy(update={"path": _model_in_words(Path(settings.model.path))})
    sections = {"model": model, "training": settings.training, "lora": settings.lora}
    return {name: blake3(section.model_dump_json().encode()).hexdigest()[:16] for name, section in sections.items()}


def _model_in_words(path: Path) -> str:
    config = path / "config.json"
    if not config.is_file():
        return str(path)  # of the hub
    sizes = sorted(f"{file.name} {file.stat().st_size}" for file in path.glob("*.safetensors"))
    return "\n".join([config.read_text(errors="replace"), *sizes])


def require(settings: Settings, *keys: str) -> None:
    """ConfigError for the first of the `section.key`s that is empty."""
    values = flatten(settings)
    for key in keys:
        if values[key] in (None, ""):
            raise ConfigError(f"{key} is not set", hint=f"set it in the config file or with --set {key}=...")


def flatten(settings: Settings) -> dict[str, Any]:
    """`section.key` -> value, in the order of the sections."""
    return {f"{section}.{key}": value for section, values in settings for key, value in values}


def setting_fields() -> dict[str, FieldInfo]:
    """`section.key` -> its field, in the order of the sections: what the reference page and its test go by."""
    fields: dict[str, FieldInfo] = {}
    for section, info in Settings.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        fields |= {f"{section}.{key}": field for key, field in kind.model_fields.items()}
    return fields
