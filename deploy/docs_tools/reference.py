"""Writes docs/configuration.md from the settings, so that the page is always up to date. `make docs` runs it."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from deploy.resolved_settings import to_toml
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, FIXED_IN_A_RUN, Settings, setting_fields
from services import durable
from services.config import OneOf

PAGE = Path("docs/configuration.md")

INTRODUCTION = f"""\
# Configuration

A run is configured by one TOML file. Every setting may be given in four places; the later ones win:

1. its default, below
2. the TOML file: `[section]`, then `key = value`; `include = "other.toml"` before the first section takes from a file
   beside it what it does not set
3. the environment: `{ENV_PREFIX}SECTION{ENV_DELIMITER}KEY=value`
4. the command line: `--set section.key=value`, as often as needed

An unknown key, a value out of range or two settings that contradict each other end the command at once, with the
key, the value, where it was given and what to do. `none` unsets an optional setting. Secrets (marked so below) are
best given in the environment; they are never written to `config.toml`.

`sept run` writes the settings as resolved to `config.toml` of the run's folder. That file starts the run again
from where it is, and lets more generators join: `sept generator --config runs/x/config.toml`. Settings marked *fixed*
belong to the run's identity: to change one, start another run in another folder.

`SEPT_LOG=json` turns the parts' log lines into JSON.
"""


def configuration_page() -> str:
    """The page, one table a section, in the order of the sections."""
    parts = [INTRODUCTION]
    for section, info in Settings.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        title = _one_line(kind.__doc__ or "").partition(": ")[2].rstrip(".")
        parts.append(f"\n## [{section}]\n\n{title[:1].upper()}{title[1:]}.\n")
        parts.append("| setting | type | default | meaning |\n|---|---|---|---|")
        parts += [_row(key, field) for key, field in setting_fields().items() if key.partition(".")[0] == section]
    return "\n".join(parts) + "\n"


def _row(key: str, field: FieldInfo) -> str:
    fixed = " *Fixed.*" if key in FIXED_IN_A_RUN else ""
    cells = (f"`{key}`", _kind(field), _default(field), _one_line(field.description or "") + fixed)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return "unset" if default is None else f"`{to_toml(default)}`"


def _kind(field: FieldInfo) -> str:
    for known in field.metadata:
        if isinstance(known, OneOf):
            return " or ".join(f"`{choice}`" for choice in known.choices)
    return _type_in_words(field.annotation) + "".join(f", {limit}" for limit in _limits(field))


def _type_in_words(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        kind, *rest = typing.get_args(annotation)
        return _type_in_words(kind) + "".join(f", {limit}" for one in rest for limit in _limits(one))
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type_in_words(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_type_in_words(one) for one in typing.get_args(annotation) if one is not types.NoneType)
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", SecretStr: "secret"}
    return names[annotation]


def _limits(field: FieldInfo) -> list[str]:
    signs = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
    return [
        sign.format(getattr(limit, name))
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


if __name__ == "__main__":
    durable.write_file(PAGE, configuration_page())
