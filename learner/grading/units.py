r"""Separates a number from its unit, and brings two units of one dimension to the same one.

split_unit(r"12\text{ cm}^2")         ("12", cm^2)
split_unit(r"10\frac{\text{m}}{\text{s}}")  ("10", m/s)
split_unit("€5")                      ("5", euro)
split_unit("21 dogs")                 ("21", dog)
split_unit("2 hours 30 minutes")      ("5/2", hour)
split_unit(r"5\text{ or more}")       the whole text, no unit: the words change what it says
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise

from learner.grading.notation import plain_words
from learner.grading.words import unit_table
from learner.grading.words.number_words import NUMBER_WORDS

MAX_UNIT_CHARACTERS = 80

Dimension = tuple[tuple[str, int], ...]
"""Base units with their exponents, sorted: m/s is (("m", 1), ("s", -1))."""
COUNT: Dimension = (("#", 1),)
PERCENT: Dimension = (("%", 1),)
ANGLE: Dimension = (("angle", 1),)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as a multiple of the base units of its dimension."""

    dimension: Dimension
    factor: Fraction = Fraction(1)
    per_pi: bool = False
    """The factor is also multiplied by pi: degrees in radians."""

    def in_base_units(self, value: str) -> str:
        """A value in this unit as an expression in base units."""
        pi = r" \cdot \pi" if self.per_pi else ""
        if self.factor == 1:
            return f"{value}{pi}"
        return rf"({value}) \cdot \frac{{{self.factor.numerator}}}{{{self.factor.denominator}}}{pi}"

    def agrees_with(self, other: Unit) -> bool:
        """Whether both can measure the same thing: counts of no certain thing agree with all counts."""
        if COUNT in (self.dimension, other.dimension):
            return all(unit.dimension == COUNT or _counts_a_noun(unit) for unit in (self, other))
        return self.dimension == other.dimension


def _counts_a_noun(unit: Unit) -> bool:
    return len(unit.dimension) == 1 and unit.dimension[0][0].startswith("#")


_PREFIX = re.compile(rf"([+-]?)\s*(?:\\text\{{\s*)?({'|'.join(unit_table.CURRENCY_SIGNS)})\s*\}}?\s*(?=[-+.\d(\\])")
_UNIT_START = re.compile(
    r"\\frac\s*\{\s*(?:\\text|[A-Za-z])|\\text|\\%|%|\^\s*\\circ|\\\$|\\(?:mu|Omega)(?![A-Za-z])|(?<![A-Za-z\\{_^])[A-Za-z]"
    r"|[€£¥₹₩₽¢$₺₪฿₫₱₦₴]|(?<![\u4e00-\u9fff])[\u4e00-\u9fff]|(?<=[万亿千百十])[\u4e00-\u9fff]|(?<![\u0600-\u06ff])[\u0600-\u06ff]"
)
_TOKEN = re.compile(
    r"\^\\circ[CF]?(?![A-Za-z])|\\?%|\\?\$|M_\{\\odot\}|[A-Za-z]\.[A-Za-z]\.?(?![A-Za-z])|[A-Za-zΩμłčồđ]+|[\u4e00-\u9fff]+|[\u0600-\u06ff]+|[€£¥₹₩₽¢₺₪฿₫₱₦₴]"
    r"|\^\{?-?\d\}?|(?<=[A-Za-z])[23](?!\d)|[/*.()-]|\s+"
)
_SEPARATORS = {"", "*", ".", "-", "(", ")"}
_POWERS_BEFORE = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3, "2": 2, "3": 3}
_CLOSED = re.compile(r"[\d})\]!A-Za-z\u4e00-\u9fff\u0600-\u06ff-]$")
_IN_BRACES = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\frac\s*{_IN_BRACES}\s*{_IN_BRACES}")
_OF = re.compile(r"\s+of\s+(?:[A-Za-z]+\s*){1,3}$")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*-?\s*([A-Za-z]{1,20})\.?")
_PARTS = re.compile(rf"{_PART.pattern}(?:\s*,?\s*(?:and\s+)?{_PART.pattern}){{1,3}}")
_PRIMES = re.compile(r"(\d+)\s*(?:'|(\^\s*\\circ))\s*(\d+(?:\.\d+)?)\s*(?:''|\"|(?<=\d)')")
_SAFE_SYMBOLS = {"kr", "cm", "mm", "km", "kg", "ft", "in", "lb", "hr", "yd", "oz", "am", "pm"}
_TEMPERATURE = re.compile(r"(?:\bdegrees?|\^\s*\\circ)\s*(?:(C)\b|(F)\b|(celsius)|(fahrenheit))", re.IGNORECASE)


def split_unit(text: str, *, letters: bool = True) -> tuple[str, Unit | None]:
    """The value and its unit; the whole text and None where it neither ends nor begins with a known unit.

    `letters`: a symbol of one or two letters outside `\\text{}` may be a unit; else it is a variable.
    """
    written = text = text.strip()
    summed = _sum_of_units(text)
    if summed is not None:
        return summed
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    if whole:
        text, letters = whole[1].strip(), True
    currency = _PREFIX.match(text)
    if currency:
        value = currency[1] + text[currency.end() :]
        rest, after = split_unit(value, letters=False)
        before = _known(re.sub(r"[\s.]", "", currency[2]))
        if before is None or after in (None, before):
            return rest, before
        is_rate = all(power < 0 for _, power in after.dimension)
        return (rest, _multiplied([(before, 1), (after, 1)])) if is_rate else (written, None)
    for match in _UNIT_START.finditer(text, max(0, len(text) - MAX_UNIT_CHARACTERS)):
        value, suffix = text[: match.start()].strip(), text[match.start() :]
        if value and _CLOSED.search(value) and _is_value(value):
            unit = parse_unit(suffix, letters=letters)
            if unit is not None:
                return value.removesuffix("-").rstrip(), unit
    return written, None


def _sum_of_units(text: str) -> tuple[str, Unit] | None:
    """A quantity in several units of one dimension, in the first of them: 2 hours 30 minutes, 5'6", 30°15'."""
    words = plain_words(text)
    primes = _PRIMES.fullmatch(words)
    if primes:
        larger, smaller = ("degree", 60) if primes[2] else ("ft", 12)
        value = Fraction(primes[1]) + Fraction(primes[3]) / smaller
        return str(value), _table()[larger]
    parts = _PARTS.fullmatch(words)
    if parts is None:
        return None
    found = [(Fraction(number), _table().get(name) or parse_unit(name)) for number, name in _PART.findall(words)]
    units = [unit for _, unit in found if unit is not None]
    first = units[0] if units else None
    if first is None or len(units) < len(found) or _counts_a_noun(first):
        return None
    if any(unit.dimension != first.dimension for unit in units) or any(
        later.factor >= earlier.factor for earlier, later in pairwise(units)
    ):
        return None
    return str(sum(number * unit.factor for (number, _), unit in zip(found, units, strict=True)) / first.factor), first


def _is_value(text: str) -> bool:
    """Whether a unit may follow: brackets are closed, and no words stand in it but those of a number."""
    if any(text.count(opening) != text.count(closing) for opening, closing in ("{}", "()", "[]")):
        return False
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", plain_words(text).lower())
    return all(word in NUMBER_WORDS or word.removesuffix("s") in NUMBER_WORDS or word in ("and", "a") for word in words)


def parse_unit(text: str, *, letters: bool = True) -> Unit | None:
    r"""The unit that a text consists of: a product of powers of known units, or a counted noun.

    parse_unit(r"\text{ square feet}")           m^2, factor 0.3048^2
    parse_unit(r"\text{miles per hour}")         m/s, factor 0.44704
    parse_unit(r"\text{ is impossible}")         None
    """
    words = _OF.sub("", _flattened(text))
    symbols = set() if letters or r"\text" in text else set(re.findall(r"[A-Za-z]+", words))
    if not words or (symbols and max(map(len, symbols)) < 3 and not symbols & _SAFE_SYMBOLS):
        return None
    return _product(words) or _noun(words)


def _flattened(text: str) -> str:
    """Plain words and symbols, with / for a fraction and for "per"."""
    text = (
        plain_words(_FRACTION.sub(r"\1/\2", text))
        .replace(r"\cdot", "*")
        .replace(r"\times", "*")
        .replace(r"\Omega", "Ω")
    )
    text = re.sub(r"(?<=years) old$", "", re.sub(r"\\mu\s*", "μ", text))
    text = _TEMPERATURE.sub(lambda match: rf"^\circ{(match[1] or match[2] or match[3] or match[4])[0].upper()}", text)
    text = re.sub(r"\bper\b(?: an?\b)?|\beach\b", "/", text)
    text = re.sub("(平方|立方)(?=.)", r"\1 ", text)
    text = re.sub(r"\b(?:US|U\.S\.)\s+(?=dollar|cent)", "", text)
    return re.sub(r"\s*(\^|/|\*)\s*", r"\1", text).strip(" ,").removesuffix("/")


def _product(words: str) -> Unit | None:
    factors: list[tuple[Unit, int]] = []
    sign, power, end = 1, 1, 0
    for match in _TOKEN.finditer(words):
        if match.start() != end:
            return None
        piece, end = match[0].strip(), match.end()
        after = _power_after(piece)
        if piece == "/":
            sign = -1
        elif after is not None:
            if not factors:
                return None
            factors[-1] = (factors[-1][0], factors[-1][1] * after)
        elif piece.lower() in _POWERS_BEFORE:
            power = _POWERS_BEFORE[piece.lower()]
        elif piece not in _SEPARATORS:
            unit = _known(piece)
            if unit is None:
                return None
            factors.append((unit, sign * power))
            power = 1
    return _multiplied(factors) if factors and end == len(words) and power == 1 else None


def _power_after(word: str) -> int | None:
    match = re.fullmatch(r"\^\{?(-?\d)\}?", word)
    return int(match[1]) if match else _POWERS_AFTER.get(word)


def _multiplied(factors: list[tuple[Unit, int]]) -> Unit:
    factor, powers = Fraction(1), dict[str, int]()
    for unit, exponent in factors:
        factor *= unit.factor**exponent
        for name, power in unit.dimension:
            total = powers.get(name, 0) + power * exponent
            powers[name] = max(-1, min(1, total)) if name == "#" else total  # square units are units
    dimension = tuple(sorted((name, power) for name, power in powers.items() if power))
    return Unit(dimension, factor, any(unit.per_pi for unit, _ in factors))


def _noun(words: str) -> Unit | None:
    """A counted thing that no table holds: up to three words, the last a plural, none of which changes the meaning."""
    phrase = words.lower().split()
    if not 0 < len(phrase) <= 3 or not all(word.isalpha() and word.isascii() and len(word) > 1 for word in phrase):
        return None
    singulars = [word.removesuffix("s") for word in phrase]
    if any(word in unit_table.NEVER_NOUNS or word in NUMBER_WORDS for word in (*phrase, *singulars)):
        return None
    last = phrase[-1]
    singular = unit_table.IRREGULAR_PLURALS.get(last, last.removesuffix("s"))
    is_plural = last in unit_table.IRREGULAR_PLURALS or (len(last) > 3 and last.endswith("s") and last[-2] not in "su")
    if singular in unit_table.ANY_COUNT:
        return Unit(COUNT)
    return Unit(((f"#{singular}", 1),)) if is_plural else None


@cache
def _table() -> dict[str, Unit]:
    table = {word: Unit(COUNT) for word in unit_table.ANY_COUNT}
    table |= {plural: Unit(((f"#{one}", 1),)) for plural, one in unit_table.IRREGULAR_PLURALS.items()}
    table |= dict.fromkeys(unit_table.PERCENT, Unit(PERCENT, Fraction(1, 100)))
    table |= dict.fromkeys(unit_table.DEGREES, Unit(ANGLE, Fraction(1, 180), per_pi=True))
    table |= dict.fromkeys(unit_table.RADIANS, Unit(ANGLE))
    for symbol, names, dimension, factor in unit_table.SI_UNITS:
        unit = Unit(_dimension(dimension), Fraction(factor))
        table |= {f"{prefix}{symbol}": _times(unit, size) for prefix, size in unit_table.SI_PREFIXES.items()}
        for name in names.split():
            table |= {f"{prefix}{name}": _times(unit, size) for prefix, size in unit_table.SI_PREFIX_NAMES.items()}
        table |= dict.fromkeys((symbol, *names.split()), unit)
    for words, dimension, factor in unit_table.OTHER_UNITS:
        table |= dict.fromkeys(words.split(), Unit(_dimension(dimension), Fraction(factor)))
    return table


def _times(unit: Unit, size: str) -> Unit:
    return Unit(unit.dimension, unit.factor * Fraction(size))


def _dimension(text: str) -> Dimension:
    parts = (part.partition("^") for part in text.split())
    return tuple(sorted((name, int(power or 1)) for name, _, power in parts))


def _known(word: str) -> Unit | None:
    """A unit by its symbol or name, in the singular or plural. Names ignore case, symbols of one letter do not."""
    for form in (word, word.lower() if len(word) > 1 else word):
        for name in (form, form.removesuffix("s") if len(form) > 2 else form, form.removesuffix("es")):
            if name in _table() and form not in unit_table.NEVER_NOUNS - {"degrees", "percent"}:
                return _table()[name]
    return None
