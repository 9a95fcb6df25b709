r"""Compares answers that both carry a unit of length, time or mass. Knows no other units, and nothing of grading.

in_base_units(r"12\text{ m}", r"12\text{ cm}")      ("(12) * (1)", "(12) * (1/100)")
in_base_units("12", r"12\text{ cm}")                None: only one has a unit
in_base_units("3 apples", "3 pears")                None: no units known here
"""

from __future__ import annotations

import re

_FACTORS = {
    "length": {"mm": "1/1000", "cm": "1/100", "m": "1", "km": "1000"},
    "length (imperial)": {"inch": "1", "foot": "12", "yard": "36", "mile": "63360"},
    "time": {"second": "1", "minute": "60", "hour": "3600", "day": "86400"},
    "mass": {"mg": "1/1000", "g": "1", "kg": "1000"},
}
_NAMES = {
    "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "in": "inch", "inche": "inch", "ft": "foot", "feet": "foot", "yd": "yard",
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "milligram": "mg", "gram": "g",
    "kilogram": "kg",
}  # fmt: skip
_KNOWN = {unit: (kind, factor) for kind, units in _FACTORS.items() for unit, factor in units.items()}
_QUANTITY = re.compile(
    r"^(?P<number>.*[\d}])(?:\\[,; ]|[\s~])*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?P<unit>[A-Za-z]+)\s*\.?\s*\}?$"
)


def in_base_units(answer: str, truth: str) -> tuple[str, str] | None:
    """Both numbers as LaTeX in the same unit when they have different known ones, else None.

    Units of different kinds (a length and a time) leave the units in place of the numbers, which are never equal.
    """
    mine, theirs = _quantity(answer), _quantity(truth)
    if mine is None or theirs is None or mine[1] == theirs[1]:
        return None
    (kind, factor), (their_kind, their_factor) = _KNOWN[mine[1]], _KNOWN[theirs[1]]
    if kind != their_kind:
        return rf"\text{{{mine[1]}}}", rf"\text{{{theirs[1]}}}"
    return f"({mine[0]}) * ({factor})", f"({theirs[0]}) * ({their_factor})"


def _quantity(text: str) -> tuple[str, str] | None:
    """The number and the unit's name, where the unit is known."""
    match = _QUANTITY.match(text.strip())
    if match is None:
        return None
    word = match["unit"].lower()
    for name in (word, word.removesuffix("s")):
        unit = _NAMES.get(name, name)
        if unit in _KNOWN:
            return match["number"], unit
    return None
