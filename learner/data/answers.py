r"""Finds the final answer that a text states: after `####`, in its last `\boxed{...}`, or after "the answer is".

A reference solution that states none, such as a proof, has no answer: nothing can be checked against it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_WORDS = 40
"""A reference of more words outside its formulas is a worked solution, not an answer."""

# A box's opening, an escaped character (whose brace does not count), or a brace. Models that think in JSON double the
# backslash.
_BRACES = re.compile(r"(?P<box>\\+(?:f?box(?:ed)?|framebox)\s*\{)|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s*(-?\d[\d.,/]*(?<![.,])|[A-Z](?![A-Za-z]))")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.:()]|\\[\[\]()]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b|\\quad|[和或及、，])*"
)
_ANSWER_IS = re.compile(
    r"\b(?:answers?|correct (?:choice|option))\b[^.\n:=$\d]{0,60}?(?:\b(?:is|are|be|equals|was)\b(?!\s*:)|\bis\s*:|:|="
    r"|[ \t]*$)[ \t]*"
    r"|(?:答案|解答|答え?|정답|답)\s*(?:是|为|爲|為|は|은|는|：|:)+|(?:الجواب|الإجابة|الاجابة|الناتج)[^\n:\d]{0,40}?(?:هو|هي|:)+",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<!\bsq)(?<!\bcu)(?<!\bapprox)(?<!\bvs)[.!?](?=\s+\D|\s*$)|[。！？]")
_DISPLAY = re.compile(r"\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])", re.DOTALL)
_NO_ANSWER = re.compile(
    r"(?:the |a )?proof\b.{0,40}|see (?:the )?(?:above|below|solution|proof|explanation|figure).{0,20}|not ?found|"
    r"n/?a|nan|null|omitted|no answer|not (?:available|provided|given)|"
    r"to be (?:proved|proven|shown)|q\.?e\.?d\.?|[-?_\s.]*",
    re.IGNORECASE | re.DOTALL,
)
_MATH = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_NEW_SENTENCE = re.compile(r"[.!?]\s+[A-Z]")


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty `\boxed{...}` (also `\fbox`), or None. One pass over the text.

    A box that the end of the text cuts off is ignored. Of nested boxes the outermost counts.

        last_boxed(r"so \boxed{\frac{1}{2}}.")        \frac{1}{2}
        last_boxed(r"\boxed{1}, no: \boxed{2}")       2
        last_boxed(r"\boxed{\boxed{3} + 1}")          \boxed{3} + 1
        last_boxed(r"\boxed{12")                      None
        last_boxed(r"\boxed 12")                      12
    """
    boxes = _boxes(_BARE_BOX.sub(r"\\boxed{\1}", text))
    return boxes[-1].content if boxes else None


def last_boxed_list(text: str) -> str | None:
    r"""The last box with those that it forms a list with: only "and", "or", commas and spaces stand between them.

    last_boxed_list(r"x is \boxed{1} or \boxed{2}.")      1, 2
    last_boxed_list(r"\boxed{1}, no: \boxed{2}")          2
    """
    text = _BARE_BOX.sub(r"\\boxed{\1}", text)
    boxes = _boxes(text)
    if not boxes:
        return None
    members = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text, box.end, members[0].start):
            break
        members.insert(0, box)
    return ", ".join(dict.fromkeys(box.content for box in members))


def _boxes(text: str) -> list[_Box]:
    """The outermost complete boxes with something in them, in their order."""
    found: list[_Box] = []
    open_at: list[tuple[int, int] | None] = []  # per open brace: start and content of a box, else None
    for match in _BRACES.finditer(text):
        if match["box"]:
            open_at.append((match.start(), match.end()))
        elif match[0] == "{":
            open_at.append(None)
        elif match[0] == "}" and open_at:
            opened = open_at.pop()
            content = text[opened[1] : match.start()].strip() if opened else ""
            if opened and content:
                while found and found[-1].start > opened[0]:  # an enclosing box closes later and wins
                    found.pop()
                found.append(_Box(opened[0], match.end(), content))
    return found


def stated_answer(text: str) -> str | None:
    """What follows the last "the answer is", "Answer:" or "答案是", to the end of the sentence; else None.

    The text is free of markdown.

        stated_answer("So the final answer is 42. I hope it is correct.")      42
        stated_answer("Final answer:\n\n73")                                   73
        stated_answer("I do not know.")                                        None
    """
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        rest = text[match.end() :].lstrip(" \t\r\n:：=")
        display = _DISPLAY.match(rest)
        line = (display[1] or display[2]) if display else rest.partition("\n")[0]
        end = None if display else _SENTENCE_END.search(line)
        found = line[: end.start()].strip() if end else line.strip()
        if found:
            return found
    return None


def final_answer(text: str, *, worked: bool = False) -> str | None:
    r"""The answer that a reference states, or None where it states none that could be checked.

    `worked`: the text is a solution, whose own words are no answer.

        final_answer("48/2 = <<48/2=24>>24\n#### 1,072")              1,072
        final_answer(r"hence \boxed{60}. ~coolmath")                  60
        final_answer("27")                                            27
        final_answer("notfound")                                      None
        final_answer("Suppose it is p/q. Then ...", worked=True)      None
    """
    _, mark, tail = text.rpartition("####")
    stated = tail.strip() if mark and tail.strip() else last_boxed(text)
    if stated is None and worked:
        stated = stated_answer(text)
    if stated is None and not (worked and _is_prose(text)):
        stated = text.strip()
    return stated if stated and is_checkable(stated) else None


def is_checkable(answer: str) -> bool:
    """Whether a reference is an answer, and neither a proof nor a word for a missing one."""
    answer = answer.strip()
    if answer == "None" or _NO_ANSWER.fullmatch(answer.strip("*_`{}[]()<>\"' ")):
        return False
    prose = _MATH.sub(" ", answer)
    return len(_WORD.findall(prose)) <= MAX_WORDS and len(_NEW_SENTENCE.findall(prose)) < 2


def _is_prose(text: str) -> bool:
    """Whether a solution's text is more than an answer on its own: a number with a unit, or a short formula."""
    return len(_WORD.findall(_MATH.sub(" ", text))) > 2 or not re.search(r"[\d$\\]", text)
