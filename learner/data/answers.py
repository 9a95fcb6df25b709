r"""Finds the final answer in a text: the last `\boxed{...}`, or what follows the last `####`."""

from __future__ import annotations

import re

# A box's opening, an escaped character (whose brace does not count), or a brace. Models that think in JSON double the
# backslash.
_BRACES = re.compile(r"(?P<box>\\+f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty `\boxed{...}` (also `\fbox`), or None. One pass over the text.

    A box that the end of the text cuts off is ignored. Of nested boxes the outermost counts.

        last_boxed(r"so \boxed{\frac{1}{2}}.")        \frac{1}{2}
        last_boxed(r"\boxed{1}, no: \boxed{2}")       2
        last_boxed(r"\boxed{\boxed{3} + 1}")          \boxed{3} + 1
        last_boxed(r"\boxed{12")                      None
    """
    found: str | None = None
    open_at: list[int | None] = []  # per open brace: where its content starts if it is a box's, else None
    for match in _BRACES.finditer(text):
        if match["box"]:
            open_at.append(match.end())
        elif match[0] == "{":
            open_at.append(None)
        elif match[0] == "}" and open_at:
            start = open_at.pop()
            content = text[start : match.start()].strip() if start is not None else ""
            found = content or found  # an enclosing box closes later and wins
    return found


def final_answer(text: str) -> str:
    """The answer of a reference solution: after the last `####` (GSM8K), else the last box, else the whole text."""
    _, mark, tail = text.rpartition("####")
    if mark and tail.strip():
        return tail.strip()
    return last_boxed(text) or text.strip()
