r"""Converts two answers in units of length, time or mass to the same unit.

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
    """Both numbers as LaTeX in the same unit if they have different known units, else None.

    For units of different kinds (a length and a time) it returns the units instead, which are never equal.
    """
    given, expected = _quantity(answer), _quantity(truth)
    if given is None or expected is None or given[1] == expected[1]:
        return None
    (kind, factor), (expected_kind, expected_factor) = _KNOWN[given[1]], _KNOWN[expected[1]]
    if kind != expected_kind:
        return rf"\text{{{given[1]}}}", rf"\text{{{expected[1]}}}"
    return f"({given[0]}) * ({factor})", f"({expected[0]}) * ({expected_factor})"


def _quantity(text: str) -> tuple[str, str] | None:
    """The number and the name of its unit; None if it has no known unit."""
    match = _QUANTITY.match(text.strip())
    if match is None:
        return None
    word = match["unit"].lower()
    for name in (word, word.removesuffix("s")):
        unit = _NAMES.get(name, name)
        if unit in _KNOWN:
            return match["number"], unit
    return None
