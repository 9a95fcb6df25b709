"""Lengths and points of time as people read and write them."""

from __future__ import annotations

import re
from datetime import datetime

from services.errors import ConfigError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def in_words(seconds: float) -> str:
    """8 -> '8 s', 100 -> '1 min 40 s', 4000 -> '1 h 6 min', 200000 -> '2 d 7 h'."""
    whole = max(0, round(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        if whole >= size or unit == "s":
            rest = "" if unit == "s" else units[index + 1][0]
            part = (whole % size) // units[index + 1][1] if rest else 0
            return f"{whole // size} {unit}" + (f" {part} {rest}" if part else "")
    return "0 s"


def point_in_time(text: str, now_s: float) -> float:
    """Unix seconds of "30s", "10m", "2h", "3d" before `now_s`, or of a date and time such as 2026-01-31T08:00.

    A time without a zone is this machine's. ConfigError for anything else.
    """
    if ago := re.fullmatch(r"(\d+)\s*([smhd])", text.strip()):
        return now_s - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise ConfigError(f"{text} is no point in time", hint="write 30s, 10m, 2h, 3d or 2026-01-31T08:00") from None
