"""The settings of a run as resolved, kept in its folder: what starts the run again and lets more parts join it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from deploy.load_settings import values_of_file
from deploy.settings import FIXED_IN_A_RUN, Settings, setting_fields
from learner.data.readers.source import absolute_source
from services import durable
from services.errors import ConfigError

log = structlog.get_logger()


def to_resolved(settings: Settings) -> str:
    """The settings as TOML that `load` reads back, without secrets and without run.dir.

    run.dir is the folder that the file is in, so that a run may be moved. Local paths become absolute, so that
    the file means the same from anywhere.
    """
    lines = ["# The settings of this run as resolved; secrets are left out."]
    for section, values in settings:
        lines += ["", f"[{section}]"]
        for key, value in values:
            if value is not None and not isinstance(value, SecretStr) and f"{section}.{key}" != "run.dir":
                lines.append(f"{key} = {to_toml(_absolute(f'{section}.{key}', value))}")
    return "\n".join(lines) + "\n"


def write_resolved(settings: Settings, path: Path, *, begun: bool = True) -> list[str]:
    """Write the resolved settings; returns the keys whose values differ from the run's last start.

    ConfigError if one of them may not change within a run that has `begun`: before its first round everything may.
    """
    resolved = to_resolved(settings)
    before = _last_start(path) if path.exists() else None
    changed = [] if before is None else _changed(before, tomllib.loads(resolved), begun=begun)
    durable.write_file(path, resolved)
    return changed


def _last_start(path: Path) -> dict[str, dict[str, Any]] | None:
    """The settings of the last start; None where the file is damaged, which keeps no run from going on."""
    try:
        values = values_of_file(path)
    except ConfigError as error:
        log.warning("settings_of_last_start_lost", reason=error.message)
        return None
    missing = Settings.model_fields.keys() - values.keys()  # each has its section in a file that is whole
    if missing:
        log.warning("settings_of_last_start_lost", reason=f"{path} lacks [{min(missing)}]")
    return None if missing else values


def _changed(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]], *, begun: bool) -> list[str]:
    def differs(section: str, key: str) -> bool:
        return before.get(section, {}).get(key) != now.get(section, {}).get(key)

    changed = [key for key in setting_fields() if differs(*key.split("."))]
    for key in changed:
        if begun and key in FIXED_IN_A_RUN:
            section, name = key.split(".")
            raise ConfigError(
                f"{key} was {before.get(section, {}).get(name)!r} when this run started and is "
                f"{now.get(section, {}).get(name)!r} now",
                hint="give run.dir another folder to start another run, or restore the value to resume this one",
            )
    return changed


def takes_effect(key: str) -> str:
    """When a setting takes effect that was changed before a run was resumed."""
    if key.startswith("sampling.") or key == "training.max_staleness":
        return "with the next round; what was sampled of it before is sampled again"
    if key.startswith("weight_sync."):
        return "with the next version"
    if key.startswith(("training.", "lora.", "health.")):
        return "with the next round"
    return "now"


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
    if key == "data.path":
        return absolute_source(value)
    is_file = key in ("services.tls_cert", "services.tls_key") or (key == "model.path" and value)
    return str(Path(value).resolve()) if is_file and Path(value).exists() else value
