"""The settings of a run: all sections in one place, from file, environment and command line. Knows no part's work.

Precedence, lowest first: defaults, the TOML file, `SEPT_SECTION__KEY` in the environment, `--set section.key=value`.

    settings = load(Path("deploy/config/demo.toml"), ["training.rounds=3"])
    settings.training.rounds                   # 3
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deploy import endpoints
from generator.config import GeneratorConfig
from learner.algorithms.choose import ALGORITHMS
from learner.config import LearnerSettings
from services import durable
from services.config import (
    RedisConfig,
    RunConfig,
    ServicesConfig,
)
from services.errors import ConfigError
from services.net import is_loopback, reachable_url, split_address
from services.run_folder import RunFolder

ENV_PREFIX = "SEPT_"
ENV_DELIMITER = "__"

LOCAL_OR_HUB = ("model.path", "data.path")
"""Settings that are a local path where one exists, else the name of something on the Hugging Face hub."""

FIXED_IN_A_RUN = (
    "run.seed",
    "model.path",
    "data.path",
    "data.split",
    "data.limit",
    "data.max_prompt_tokens",
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
    """What the sections contradict each other in; every line names both keys, their values and the way out."""
    algorithm = ALGORITHMS[settings.training.algorithm]
    if settings.sampling.rollouts_per_prompt < algorithm.smallest_group:
        yield (
            f"training.algorithm ({algorithm.name}) compares the rollouts of a prompt, sampling.rollouts_per_prompt is "
            f"{settings.sampling.rollouts_per_prompt}: set it to {algorithm.smallest_group} or more"
        )
    if settings.evaluation.every_rounds and not settings.evaluation.benchmarks:
        yield (
            f"evaluation.every_rounds is {settings.evaluation.every_rounds} and evaluation.benchmarks names none: "
            "name some, or set evaluation.every_rounds to 0"
        )
    if settings.heartbeat.lost_after_s <= settings.heartbeat.every_s:
        yield (
            f"heartbeat.lost_after_s ({settings.heartbeat.lost_after_s}) must exceed heartbeat.every_s "
            f"({settings.heartbeat.every_s}): several times as long lets one late heartbeat pass"
        )
    if settings.generator.chat and settings.generator.engine != "vllm":
        yield (
            f"generator.chat ({settings.generator.chat}) needs generator.engine vllm, and it is "
            f"{settings.generator.engine}: a scripted engine has nothing to say"
        )
    chat = settings.generator.chat
    if chat and settings.services.token is None and not is_loopback(split_address(chat)[0]):
        yield (
            f"generator.chat ({settings.generator.chat}) is not loopback and services.token is not set: set "
            f"{ENV_PREFIX}SERVICES{ENV_DELIMITER}TOKEN to a secret, or bind to 127.0.0.1"
        )
    if settings.services.token is None and not is_loopback(settings.services.host):
        yield (
            f"services.host ({settings.services.host}) is not loopback and services.token is not set: set "
            f"{ENV_PREFIX}SERVICES{ENV_DELIMITER}TOKEN to a secret, or bind to 127.0.0.1"
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Values from one source, and how to name that source to a person."""

    name: str
    values: dict[str, dict[str, Any]]


def load(
    config: Path | None,
    sets: Iterable[str] = (),
    *,
    join: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read, merge and check the settings; ConfigError names the key, the value, where it stands and the remedy.

    A config file inside a run folder (the resolved one that `sept run` leaves there) belongs to that folder.
    With `join`, the addresses and secrets that no source sets come from the run that is going in run.dir.
    """
    layers = [_from_file(config)] if config is not None else []
    layers += [_from_environment(os.environ if environ is None else environ), _from_sets(sets)]
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.values.items():
            merged.setdefault(section, {}).update(values)
    if config is not None and (config.parent / "run.json").exists():
        merged.setdefault("run", {}).setdefault("dir", str(config.parent))
    if join:
        _join(merged)
    return _checked(merged, layers)


def from_values(values: Mapping[str, Mapping[str, Any]], name: str) -> Settings:
    """The settings in `values`, section by section, checked as those of a file; `name` says whose they are."""
    merged = {section: dict(content) for section, content in values.items()}
    return _checked(merged, [_Layer(name, merged)])


def _checked(merged: dict[str, dict[str, Any]], layers: list[_Layer]) -> Settings:
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explained(error, layers) from error


def _join(merged: dict[str, dict[str, Any]]) -> None:
    """Fill in the addresses of the run that is going, where there is one."""
    folder = merged.get("run", {}).get("dir", RunConfig().dir)
    found = endpoints.read(RunFolder(Path(folder)))
    if found is not None:
        for section, key, value in (
            ("redis", "url", found.redis_url),
            ("services", "url", found.services_url),
            ("services", "token", found.token),
        ):
            merged.setdefault(section, {}).setdefault(key, value)


def services_url(settings: Settings) -> str:
    """How other parts reach the services."""
    return settings.services.url or reachable_url(settings.services.host, settings.services.port)


def redis_url(settings: Settings) -> str:
    """The address of Redis, password included; ConfigError when there is none to join."""
    if settings.redis.url is None:
        raise ConfigError(
            f"redis.url is not set, and no run is going in {settings.run.dir}",
            hint="start the run with `sept run`, or set redis.url to the Redis that the other parts use",
        )
    return settings.redis.url.get_secret_value()


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


def to_resolved(settings: Settings) -> str:
    """The settings as TOML that `load` reads back, without secrets and without run.dir.

    run.dir is the folder that the file lies in, so that a run may be moved. Local paths become absolute, so that
    the file means the same from anywhere.
    """
    lines = ["# The settings of this run as resolved; secrets are left out."]
    for section, values in settings:
        lines += ["", f"[{section}]"]
        for key, value in values:
            if value is not None and not isinstance(value, SecretStr) and f"{section}.{key}" != "run.dir":
                lines.append(f"{key} = {to_toml(_absolute(f'{section}.{key}', value))}")
    return "\n".join(lines) + "\n"


def write_resolved(settings: Settings, path: Path) -> list[str]:
    """Write the resolved settings; returns the keys that differ from those of the run's start before.

    ConfigError if one of them may not change within a run.
    """
    resolved = to_resolved(settings)
    changed = _changed(_from_file(path).values, tomllib.loads(resolved)) if path.exists() else []
    durable.write_file(path, resolved)
    return changed


def _changed(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    def differs(section: str, key: str) -> bool:
        return before.get(section, {}).get(key) != now.get(section, {}).get(key)

    changed = [key for key in setting_fields() if differs(*key.split("."))]
    for key in changed:
        if key in FIXED_IN_A_RUN:
            section, name = key.split(".")
            raise ConfigError(
                f"{key} was {before.get(section, {}).get(name)!r} when this run started and is "
                f"{now.get(section, {}).get(name)!r} now",
                hint="give run.dir another folder to start another run, or restore the value to resume this one",
            )
    return changed


def to_toml(value: bool | int | float | str | Path | tuple[Any, ...]) -> str:
    """The value as a TOML literal."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    escaped = "".join(
        f"\\{char}" if char in '"\\' else char if char.isprintable() else f"\\U{ord(char):08x}" for char in str(value)
    )
    return f'"{escaped}"'


def _absolute(key: str, value: Any) -> Any:
    """A local path means the same from anywhere; a Hugging Face id stays as it is."""
    if key == "evaluation.benchmarks":
        named = [text.partition("=") for text in value]
        return tuple(f"{name}{equals}{_absolute('data.path', path)}" for name, equals, path in named)
    return str(Path(value).resolve()) if key in LOCAL_OR_HUB and value and Path(value).exists() else value


def _is_secret(key: str) -> bool:
    return "SecretStr" in str(setting_fields()[key].annotation)


def _from_file(path: Path) -> _Layer:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"config file {path} does not exist", hint="deploy/config holds examples to start from"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}", hint="give a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path} is not TOML: {error}", hint="texts need quotes in TOML") from error
    for section, content in values.items():
        if not isinstance(content, dict):
            raise ConfigError(
                f"{section} = {content!r} in {path} stands outside a section",
                hint=f"settings belong to one of [{'], ['.join(Settings.model_fields)}]",
            )
    return _Layer(str(path), values)


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    values: dict[str, dict[str, Any]] = {}
    for name, text in environ.items():
        section, delimiter, key = name.removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if name.startswith(ENV_PREFIX) and delimiter:
            values.setdefault(section.lower(), {})[key.lower()] = _literal(section.lower(), key.lower(), text)
    return _Layer("the environment", values)


def _from_sets(sets: Iterable[str]) -> _Layer:
    values: dict[str, dict[str, Any]] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {text} is not of the form section.key=value", hint="--set training.rounds=3")
        values.setdefault(section, {})[key] = _literal(section, key, value.strip())
    return _Layer("--set", values)


def _literal(section: str, key: str, text: str) -> Any:
    """The text as pydantic is to see it: `none` and nothing at all unset an optional setting."""
    field = setting_fields().get(f"{section}.{key}")
    optional = field is not None and field.default is None
    return None if optional and text.lower() in ("", "none", "null") else text


def _explained(error: ValidationError, layers: list[_Layer]) -> ConfigError:
    """The first problem as a ConfigError; a conflict or an unknown key says what to do instead."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"][:2])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(key, layers)
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return ConfigError(message, hint="change one of the two settings")
    return ConfigError(
        f"{key} = {_shown(key, problem)}{_origin(key, layers)} is not valid: {problem['msg']}", hint=_remedy(key)
    )


def _unknown_key(key: str, layers: list[_Layer]) -> ConfigError:
    known = [*Settings.model_fields, *setting_fields()]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/configuration.md lists every setting"
    kind = "setting" if "." in key else "section"
    return ConfigError(f"{key}{_origin(key, layers)} is not a {kind}", hint=hint)


def _origin(key: str, layers: list[_Layer]) -> str:
    section, _, name = key.partition(".")
    for layer in reversed(layers):
        if section in layer.values and (not name or name in layer.values[section]):
            return f" (from {layer.name})"
    return ""


def _shown(key: str, problem: ErrorDetails) -> str:
    return "(a secret)" if key in setting_fields() and _is_secret(key) else repr(problem["input"])


def _remedy(key: str) -> str:
    field = setting_fields().get(key)
    return f"{key}: {field.description}" if field is not None else "docs/configuration.md lists every setting"
