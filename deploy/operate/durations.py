"""Lengths of time as people read them."""

from __future__ import annotations


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
