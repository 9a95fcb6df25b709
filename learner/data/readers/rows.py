"""What every reader yields: a row as it was read, and where it stands, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from services.errors import DataError

Record = Mapping[str, Any]
"""Column -> value."""


class Row(NamedTuple):
    """One row of a data set."""

    where: str
    """"train.jsonl line 7": how an error names it."""
    record: Record
    error: DataError | None = None
    """Why it is no row, where the ones after it can be read all the same."""


def in_words(value: Any) -> str:
    """A type as people who write JSON call it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
