r"""Takes answers of several parts to pieces: lists, tuples, sets, intervals, equations, chosen options.

split_list("1, 2 and 3")             ("", ["1", "2", "3"], "")
split_list(r"\{1, 2\}")              ("{", ["1", "2"], "}")
split_list("(1, (2, 3)]")            ("(", ["1", "(2, 3)"], "]")
split_list(r"2 \pm \sqrt{3}")        ("", [r"2 + \sqrt{3}", r"2 - \sqrt{3}"], "")
split_list("x+1")                    None
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from learner.grading.notation import plain_words, unwrapped

MAX_PARTS = 64
_OPENING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\langle": r"\rangle"}
_PLAIN_BRACKETS = {r"\{": "{", r"\}": "}", r"\langle": "(", r"\rangle": ")"}
_CLOSING = set(_OPENING.values())
_BRACKET = re.compile(r"\\[{}]|\\[lr]angle(?![A-Za-z])|\\[lr](?:floor|ceil)|\\.|[()\[\]{}]", re.DOTALL)
_AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or|和|或)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\s*[和或]\s*|\s+و\s*|\s+أو\s+"
)
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne|in|notin|subset|to|equiv|mid|cup|cap|setminus)(?![A-Za-z])")
_NAME = re.compile(
    r"(?:\\text\s*\{[^{}]*\}|\\(?:angle|triangle|vec|hat|overline|bar)?\s*\{?\s*[A-Za-z]{1,3}\s*\}?|\\?[A-Za-z]+)"
    r"(?:_(?:\{[^{}]*\}|\w))?'*(?:\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?|\|[A-Za-z]{1,3}\||\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\)"
)
_LEAD = re.compile(
    r"答案(?:是|为|:)+|(?:\\text\s*\{)?\s*(?:(?:so|thus|hence|therefore),?\s+)?(?:the|our|my|its)?\s*(?:final|correct|exact)?\s*"
    r"(?:answer|result|value|solution|probability|area|total|sum|number|\b[A-Za-z](?=\s+is\b))\s*(?:is|=|:|are)\s*(?P<end>\})?\s*(?=\S)",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"(?:\\text\s*\{\s*)?(?:approximately|approx\.?|about|roughly|around)\s*\}?\s*(?=[-\d\\.$€£])|\\(?:approx|sim)(?![A-Za-z])"
)
_WORD_RELATIONS = (
    (re.compile(r"^(?:at least|no (?:less|fewer) than|not less than)\s+(?=[-\d\\])"), r"\\ge "),
    (re.compile(r"^(?:at most|no more than|not more than|up to)\s+(?=[-\d\\])"), r"\\le "),
    (re.compile(r"^(?:more|greater|larger) than\s+(?=[-\d\\])"), "> "),
    (re.compile(r"^(?:less|fewer|smaller) than\s+(?=[-\d\\])"), "< "),
    (re.compile(r"^(.*\d)\s+or (?:more|greater|larger|higher|above)$"), r"\\ge \1"),
    (re.compile(r"^(.*\d)\s+or (?:less|fewer|smaller|lower|below)$"), r"\\le \1"),
    (re.compile(r"^(?:the )?square root of\s+([\w.]+|\{.*\})$"), r"\\sqrt{\1}"),
    (re.compile(r"^half of\s+(\d+)$"), r"\\frac{\1}{2}"),
    (re.compile(r"^(\d+)\s+(?:in|out of)\s+(\d+)$"), r"\\frac{\1}{\2}"),
    (re.compile(r"^(\d+)\s+to\s+(\d+)$"), r"\1:\2"),
    (re.compile(r"^(?:all|any|every) reals?(?: numbers?)?$"), r"\\mathbb{R}"),
    (re.compile(r"^(?:minus|negative)\s+(?=[\\(A-Za-z])"), "-"),
)
_OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-Ja-j])\s*\)|([A-J])\s*(?:[).]|:(?!\d)))\s*:?\s*(.*)|(?:option|choice)\s+([A-J])|选?([A-J])项?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """An answer of several parts between brackets."""

    opening: str
    parts: tuple[str, ...]
    closing: str

    @property
    def is_ordered(self) -> bool:
        """A tuple or an interval, or a list that goes on by a rule."""
        return self.opening in ("(", "[") or any(r"\ldots" in part or r"\cdots" in part for part in self.parts)


_VECTOR = re.compile(r"\\begin\s*\{[pb]matrix\}(.*)\\end\s*\{[pb]matrix\}", re.DOTALL)


def vector_as_list(text: str) -> Listed | None:
    r"""The components of a matrix of one row or one column, as a tuple.

    vector_as_list(r"\begin{pmatrix}1\\2\end{pmatrix}")     ("(", ["1", "2"], ")")
    """
    match = _VECTOR.fullmatch(text.strip())
    if match is None or ("&" in match[1] and r"\\" in match[1].strip().removesuffix(r"\\")):
        return None
    parts = [part.strip() for part in re.split(r"&|\\\\", match[1]) if part.strip()]
    return Listed("(", tuple(parts), ")") if 1 < len(parts) <= MAX_PARTS else None


def split_list(text: str) -> Listed | None:
    """The parts of a list, tuple, set or interval; None for a single expression."""
    inner = text.strip()
    opening, closing = _brackets(inner)
    inner = inner.removeprefix(opening).removesuffix(closing)
    opening, closing = (_PLAIN_BRACKETS.get(bracket, bracket) for bracket in (opening, closing))
    parts = [unwrapped(part) for part in top_level_parts(_AND.sub(",", inner), ",;")]
    parts = [part for part in parts if part]
    if opening in ("", "{"):
        parts = [sign for part in parts for sign in _both_signs(part)]
    if (len(parts) < 2 and opening != "{") or len(parts) > MAX_PARTS:
        return None
    return Listed(opening, tuple(parts), closing)


def _brackets(text: str) -> tuple[str, str]:
    """The brackets around the whole text. Those of a half-open interval are of two kinds."""
    for left, right in _OPENING.items():
        for closing in (")", "]") if left in ("(", "[") else (right,):
            if left != "{" and text.startswith(left) and text.endswith(closing) and _encloses(text):
                return left, closing
    return "", ""


def _encloses(text: str) -> bool:
    """Whether the bracket at the start is closed at the end, and not before."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += (match[0] in _OPENING) - (match[0] in _CLOSING)
        if depth == 0:
            return match.end() == len(text)
    return False


def top_level_parts(text: str, separators: str) -> list[str]:
    """The text cut at separators that stand in no brackets."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"\\[{{}}]|\\[lr]angle|\\.|[()\[\]{{}}]|[{re.escape(separators)}]", text, re.DOTALL):
        if match[0] in _OPENING:
            depth += 1
        elif match[0] in _CLOSING:
            depth -= 1
        elif depth <= 0 and len(match[0]) == 1 and match[0] in separators:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _both_signs(text: str) -> list[str]:
    if len(re.findall(r"\\pm(?![A-Za-z])", text)) != 1:
        return [text]
    signs = (("+", "-"), ("-", "+"))
    return [
        re.sub(r"^\s*\+\s*", "", re.sub(r"\\mp(?![A-Za-z])", mp, re.sub(r"\\pm(?![A-Za-z])", pm, text)))
        for pm, mp in signs
    ]


def without_lead(text: str) -> str:
    r"""Without "the answer is" and "approximately" before the answer; words for relations and roots as signs.

    without_lead(r"\text{the answer is } 5")     5
    without_lead(r"\text{at least } 5")          \ge 5
    """
    match = _LEAD.match(text)
    if match and (match["end"] or r"\text{" not in match[0]):
        text = text[match.end() :]
    about = _ABOUT.match(text)
    if about:
        text = text[about.end() :].strip()
    words = plain_words(text)
    for pattern, replacement in _WORD_RELATIONS:
        rewritten = pattern.sub(replacement, words)
        if rewritten != words:
            return rewritten.strip()
    return text.strip()


def sides(text: str) -> list[str]:
    r"""The parts of an equation: ["x", "5"] of "x = 5". One part where it is a list, or another relation."""
    if len(top_level_parts(text, ",;")) > 1:
        return [text]
    if _RELATION.sub("", text, count=1).count("=") == 0 and re.search(r"\\in(?![A-Za-z])", text):
        name, _, values = text.partition(r"\in")
        return [name.strip(), values.strip()] if is_name(name) else [text]
    parts = [part.strip() for part in top_level_parts(text, "=")]
    return [text] if _RELATION.search(text) or not all(parts) else parts


def is_name(text: str) -> bool:
    """Whether the text only names a value: x, f(x), a_1, (x, y), or words."""
    return bool(_NAME.fullmatch(text.strip()))


def value_of(text: str, *, named: bool) -> str:
    """What an equation or a chain of them says the value is; the whole text where it says none.

    `named`: only where the left side is a name: x+y = 5 is no value.

        value_of("x = 5", named=True)          5
        value_of("2 + 3 = 5", named=False)     5
        value_of("2 = x", named=False)         2
    """
    parts = sides(text)
    if len(parts) == 1 or (named and not is_name(parts[0])):
        return text
    if is_name(parts[-1]) and not is_name(parts[0]) and not named:
        return parts[0]
    return parts[-1]


def approximations(text: str) -> list[str]:
    r"""The value and what it is said to be about.

    approximations(r"\frac{5}{3} \approx 1.67")   [r"\frac{5}{3}", "1.67"]
    """
    parts = [part.strip() for part in re.split(r"\\approx(?![A-Za-z])", text)]
    return [part for part in parts if part] or [text]


def read_option(text: str) -> tuple[str, str] | None:
    r"""The letter of a chosen option and its text, either of which may be missing.

    read_option(r"\text{(C) } 12")   ("C", "12")
    read_option("B.")                ("B", "")
    read_option("12")                None
    """
    match = _OPTION.fullmatch(plain_words(text))
    if match is None:
        return None
    letter = match[1] or match[2] or match[4] or match[5]
    rest = (match[3] or "").strip()
    return (
        None
        if re.match(r"[-+*/^=,&]|(?:and|or)\b|\\(?:cup|cap|times|cdot)", rest)
        else (letter.upper(), unwrapped(rest))
    )
