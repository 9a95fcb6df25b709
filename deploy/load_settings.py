"""Loads the settings of a run from file, environment and command line, and explains what is wrong with them.

Precedence, lowest first: defaults, the TOML file, `SEPT_SECTION__KEY` in the environment, `--set section.key=value`.

    settings = load(Path("deploy/config/demo.toml"), ["training.rounds=3"])
    settings.training.rounds                   # 3
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deploy import endpoints
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, Settings, setting_fields
from services.config import RunConfig
from services.errors import ConfigError
from services.run_folder import RunFolder

INCLUDE = "include"
"""Key before the first section of a config file."""


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
    as_generator: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read, merge and check the settings; ConfigError names the key, the value, its source and the remedy.

    A config file inside a run folder (the resolved one that `sept run` leaves there) belongs to that folder.
    With `join`, the addresses and secrets that no source sets come from the active run in run.dir; `as_generator`:
    those of generators, which may do less.
    """
    layers = [_Layer(str(config), values_of_file(config))] if config is not None else []
    layers += [_from_environment(os.environ if environ is None else environ), _Layer("--set", values_of_sets(sets))]
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.values.items():
            merged.setdefault(section, {}).update(values)
    if config is not None and RunFolder(config.parent).identity.exists():
        merged.setdefault("run", {}).setdefault("dir", str(config.parent))
    if join:
        _join(merged, as_generator=as_generator)
    return _checked(merged, layers)


def from_values(values: Mapping[str, Mapping[str, Any]], name: str) -> Settings:
    """The settings in `values`, section by section, checked as those of a file; `name` is their source in errors."""
    merged = {section: dict(content) for section, content in values.items()}
    return _checked(merged, [_Layer(name, merged)])


def _checked(merged: dict[str, dict[str, Any]], layers: list[_Layer]) -> Settings:
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explained(error, layers) from error


def _join(merged: dict[str, dict[str, Any]], *, as_generator: bool) -> None:
    """Fill in the addresses of the active run, where there is one."""
    folder = merged.get("run", {}).get("dir", RunConfig().dir)
    found = endpoints.read(RunFolder(Path(folder)))
    if found is None:
        return
    given = {("services", "url"): found.services_url, ("services", "tls_cert"): found.tls_cert}
    if as_generator:
        given |= {
            ("redis", "url"): found.generator_redis_url or found.redis_url,
            ("services", "token"): found.generator_token or found.token,
        }
    else:
        given |= {
            ("redis", "url"): found.redis_url,
            ("services", "token"): found.token,
            ("services", "generator_token"): found.generator_token,
            ("services", "watch_token"): found.watch_token,
        }
    for (section, key), value in given.items():
        if value is not None:
            merged.setdefault(section, {}).setdefault(key, value)


def values_of_file(path: Path) -> dict[str, dict[str, Any]]:
    """section -> key -> value as in the file, unchecked; ConfigError when it is no TOML file of sections.

    `include = "other.toml"`, before the first section, names a file beside it whose values count where it has none.
    """
    values = _parsed(path)
    included = values.pop(INCLUDE, None)
    if included is None:
        return values
    base = path.parent / str(included)
    if base.resolve() == path.resolve() or INCLUDE in (merged := _parsed(base)):
        raise ConfigError(f"{path} includes {base}, which includes another file", hint="include one file, once")
    for section, content in values.items():
        merged.setdefault(section, {}).update(content)
    return merged


def _parsed(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob("*.toml")], n=1)
        raise ConfigError(
            f"config file {path} does not exist (looked in {Path.cwd()})",
            hint=f"did you mean {path.parent / near[0]}?" if near else "deploy/config holds examples to start from",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}", hint="give a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path} is not TOML: {error}", hint="texts need quotes in TOML") from error
    for section, content in values.items():
        if not isinstance(content, dict) and section != INCLUDE:
            raise ConfigError(
                f"{section} = {content!r} in {path} is outside a section",
                hint=f"settings belong to one of [{'], ['.join(Settings.model_fields)}]",
            )
    return values


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    values: dict[str, dict[str, Any]] = {}
    for name, text in environ.items():
        section, delimiter, key = name.removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if name.startswith(ENV_PREFIX) and delimiter:
            values.setdefault(section.lower(), {})[key.lower()] = _literal(section.lower(), key.lower(), text)
    return _Layer("the environment", values)


def values_of_sets(sets: Iterable[str]) -> dict[str, dict[str, Any]]:
    """section -> key -> value of texts like "section.key=value", unchecked; ConfigError when one has another form."""
    values: dict[str, dict[str, Any]] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {text} is not of the form section.key=value", hint="--set training.rounds=3")
        values.setdefault(section, {})[key] = _literal(section, key, value.strip())
    return values


def _literal(section: str, key: str, text: str) -> Any:
    """The text as pydantic gets it: `none` and an empty text unset an optional setting."""
    field = setting_fields().get(f"{section}.{key}")
    optional = field is not None and field.default is None
    return None if optional and text.lower() in ("", "none", "null") else text


def _is_secret(key: str) -> bool:
    return "SecretStr" in str(setting_fields()[key].annotation)


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
