r"""Finds the answer in a response: what is said after thinking, between answer tags, in a box, after "the answer is",
or else on the last line that holds a formula or a number.

find_candidate(r"<think>\boxed{3}</think> It is 4.")     no box, the tail "It is 4."
unboxed_answer("**Answer:** `73`")                       73
unboxed_answer("So she has **5** apples left.")          5 apples
unboxed_answer("I do not know.")                         None
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from learner.data.answers import last_boxed, last_boxed_list, stated_answer
from learner.grading.exact_numbers import read_number
from learner.grading.notation import ascii_notation, normalised, without_markdown
from learner.grading.structure import read_option
from learner.grading.units import parse_unit, split_unit

TAIL_CHARACTERS = 2_000
"""Characters at the end of a response without a box that are searched for an answer."""

_THOUGHT = re.compile(
    r"</think(?:ing)?>|</thought>|</reasoning>|</reflection>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷|"
    r"<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THINKING = re.compile(r"<think(?:ing)?>|<thought>|<reasoning>|<\|begin_of_thought\|>|\[THINK\]|◁think▷", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?:\{|\Z)")
_CUT_FORMULA = re.compile(r"\\[(\[](?:(?!\\[)\]]).)*\Z", re.DOTALL)
_ONLY_DELIMITER = re.compile(r"(?:\\[()\[\]]|\$+|\s)*")
_WHOLE_FORMULA = re.compile(r"^\$([^$]+)\$$")
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>")
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$])\$(?![\s$])((?:\\\$|[^$\n])+?)(?<![\s\\])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_NUMBER = re.compile(
    r"[$€£]\s?\d{1,3}(?: \d{3})+(?![\d-])|(?:\\\$|[$€£¥₹]\s?)?(?<![\w.])[-+]?(?:\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}"
    r"|\d{1,2}:\d\d(?!\d)|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,4}(?![A-Za-z\d])|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?-?\d{1,4}\}?)?\s*(?:\\?%)?"
)
_SCALE_AFTER = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|[万亿千百])\b")
_QUALIFIED = re.compile(
    r"(?:n't|\b(?:not|never|cannot|minus|negative|at least|at most|up to|"
    r"(?:more|less|fewer|greater|larger|smaller) than|square root of|half of|twice|no|"
    r"(?:no (?:\w+ )?solutions?|undefined|impossible|false|fails) (?:for|at|of|if)))"
    r"(?:\s+(?:be|equal(?:\s+to)?|is|exactly))?\s*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\W{0,3}(?:is|was)(?:(?:n't| not) (?:the|an?|my|right|correct)\b| (?:an? )?(?:wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"(?:=|\bwhich (?:is|equals|means|rounds (?:up |down )?to)|\brounded (?:up |down )?to)\s*[\\$€£]{0,2}$",
    re.IGNORECASE,
)
_IS = re.compile(
    r"\b(?:is|are|was|be|equals|to)\s+(?:equal to |exactly |about |approximately )?[\\$€£]{0,2}$", re.IGNORECASE
)
_LABEL = re.compile(
    r"\b(?:step|case|equation|eq\.|figure|problem|question|method|part|line|example)\s*\(?$", re.IGNORECASE
)
_IN_JSON = re.compile(r"""["']?(?:final_)?answer["']\s*:\s*("?)(.+?)\1\s*[,}\n]""", re.IGNORECASE)
_CHOSEN = re.compile(r"\b(?:option|choice)\s+(\(?[A-J]\)?)[*.\s]*$")
_YES_OR_NO = re.compile(r"(yes|no)\b[,.;!]", re.IGNORECASE)
_MARKED = re.compile(r"####[ \t]*(\S.*)")
_CLAUSE = re.compile(
    r"[,;]?\s+(?:because|since|which|so that|as we|as the|where we|i hope|if you|and we are|for a total|in total)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_RESTATED = re.compile(
    r"^[\s>#*_-]*(?:final\s+)?answer[*_]*\s*[:=][*_]*[ \t]*(\S.*?)[*_.\s]*$", re.IGNORECASE | re.MULTILINE
)
_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|(?:so|is|it|we|in|of|to|at|as|by|an|if|no|be|on|do|he|my|or|up)\b)", re.IGNORECASE
)
_FUNCTION = re.compile(r"\\text\s*\{[^{}]*\}|\b(?:sin|cos|tan|log|sqrt|exp|and|arcsin|arccos|arctan)\b")


@dataclass(frozen=True, slots=True)
class Candidate:
    """The part of a response that decides its grade; short, however long the response."""

    boxed: str | None
    """Content of the last complete box."""
    tail: str
    """Without a box: the end of the response. Boxes in a row: all of them as one list. Else empty."""


def find_candidate(response: str) -> Candidate:
    """The part of a response that can hold its answer. Linear in the response's length."""
    said = _after_thinking(response)
    tags = _TAG.findall(said)
    if tags and tags[-1].strip():
        said = tags[-1]
    boxed = last_boxed(said)
    restated = _restated(said) if boxed is not None else None
    if boxed is None or restated:
        return Candidate(None, restated or _CONTROL.sub("", said[-TAIL_CHARACTERS:]))
    listed = last_boxed_list(said) or boxed
    return Candidate(boxed, "" if listed == boxed else listed)


def _restated(text: str) -> str | None:
    """The option or the number on a line "Answer: ..." after the last box; None where there is no such line."""
    lines = _RESTATED.findall(text[text.rfind("boxed") :][-TAIL_CHARACTERS:])
    answer = normalised(lines[-1]) if lines else ""
    is_answer = read_option(answer) is not None or read_number(split_unit(answer)[0]) is not None
    return str(lines[-1]) if is_answer else None


def _after_thinking(response: str) -> str:
    """What follows the thinking. Thinking that never ends is all there is."""
    end = 0
    for match in _THOUGHT.finditer(response):
        end = match.end()
    return response[end:] if response[end:].strip() else _THINKING.sub("", response)


def unboxed_answer(text: str) -> str | None:
    """The answer in the end of a response without a complete box; None where nothing reads as one.

    A box that is empty or cut off says that there is no answer yet; so does a formula that the end of the text cuts
    off, unless an answer is stated before.
    """
    if _BOX.search(text):
        return None
    marked = _MARKED.findall(text)
    if marked and re.search(r"\d", marked[-1]) and len(_PROSE.findall(marked[-1])) < 3:
        return str(marked[-1]).strip()
    whole = without_markdown(text).strip()
    text = _CUT_FORMULA.sub("", whole).strip()
    in_json = _IN_JSON.findall(text)
    if in_json:
        return str(in_json[-1][1])
    stated = stated_answer(text)
    if stated is not None:
        return _WHOLE_FORMULA.sub(r"\1", _CLAUSE.sub("", stated).strip() or stated)
    if text != whole:
        return None
    lines = [line.strip() for line in text.splitlines() if not _ONLY_DELIMITER.fullmatch(line)]
    if len(lines) == 1 and len(lines[0].split()) <= 3 and not re.search(r"\d|[?!]$", lines[0]):
        return lines[0]
    found = next((found for line in reversed(lines) if (found := _on_line(line)) is not None), None)
    decision = _YES_OR_NO.match(lines[-1]) if lines and found is None else None
    return decision[1] if decision else found


def _on_line(line: str) -> str | None:
    """A line that is an answer as a whole, else its last formula or number with what qualifies it."""
    answer = normalised(line)
    chosen = _CHOSEN.search(line)
    if chosen:
        return chosen[1]
    if read_option(answer) or read_number(split_unit(answer)[0]):
        return line
    if re.search(r"\d|\\", line) and not _PROSE.search(_FUNCTION.sub("", line)):
        return line
    formulas = list(_FORMULA.finditer(line))
    if formulas and _has_number_after(line, formulas[-1].end()):
        line = line[formulas[-1].end() :]
        formulas = []
    if formulas:
        start, end = formulas[-1].span()
        found = next(group for group in formulas[-1].groups() if group)
    else:
        line = ascii_notation(line)
        numbers = [match for match in _NUMBER.finditer(line) if not _LABEL.search(line[: match.start()])]
        if not numbers:
            return None
        # "He has 5 + 99 = 104 games after 3 years": the result stands after the sign.
        results = [match for match in numbers if _RESULT.search(line[: match.start()])]
        start, end = (results or numbers)[-1].span()
        found = line[start:end].strip()
    qualified = _QUALIFIED.search(line[:start])
    if _DENIED.match(line[end:]):
        return f"not {found}"
    unit = _unit_after(line[end:], of_money=found.startswith(("$", r"\$", "€", "£")))
    return " ".join(filter(None, (qualified[0].strip() if qualified else "", found, unit.strip())))


def _has_number_after(line: str, end: int) -> bool:
    """Whether a number is said to be the result after the last formula: "the remainder of $x$ is 3"."""
    return any(_IS.search(line[end : match.start(0)]) for match in _NUMBER.finditer(line, end))


def _unit_after(text: str, *, of_money: bool) -> str:
    """The scale and the unit that follow a number: " million dollars" of " million dollars in all"."""
    scale = _SCALE_AFTER.match(text)
    start = scale.end() if scale else 0
    words = re.match(r"\s*(?:[A-Za-z%°]+[ /]?){1,3}", text[start:])
    parts = words[0].split(" ") if words else []
    for count in range(len(parts), 0, -1):
        unit = " ".join(parts[:count]).rstrip()
        known = parse_unit(unit.strip(), letters=False) if unit.strip() not in ("", "in") else None
        if known is not None and not (of_money and all(power > 0 for _, power in known.dimension)):
            return text[:start] + unit
    return text[:start]
