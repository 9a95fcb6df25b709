r"""Rewrites an answer in one notation: no markdown, ASCII and LaTeX instead of Unicode, no layout. The meaning stays.

normalised("**½ㅤcm²**")                \frac{1}{2} cm^{2}
normalised(r"\left(1,\dfrac12\right).") (1,\frac12)
normalised("（1，２）")                    (1,2)
normalised("≥3")                        \ge 3
"""

from __future__ import annotations

import re
import unicodedata

MAX_WRAPPINGS = 20
"""So many pairs of braces around an answer are taken off."""

_SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix", strict=True))
_SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₓ", "0123456789+-=()nx", strict=True))
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega"
)
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "➖": "-", "＋": "+", "×": r"\times ",
    "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "∶": ":", "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≅": r"\approx ", "∼": r"\sim ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ",
    "∠": r"\angle ", "△": r"\triangle ", "∆": r"\Delta ", "…": r"\ldots ", "⋯": r"\cdots ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "→": r"\to ", "∧": r"\wedge ", "∨": r"\vee ", "∑": r"\sum ",
    "∫": r"\int ", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "、": ",", "，": ",", "。": ".", "；": ";",
    "：": ":", "٫": ".", "٬": "", "،": ",", "؛": ";", "٪": "%", "【": "(", "】": ")", "「": "", "」": "", "￥": "¥",
    "Ω": r"\Omega ", "ϕ": r"\phi ", "µ": r"\mu ",
} | {letter: f"\\{name} " for letter, name in zip("αβγδεζηθικλμνξοπρςστυφχψω", _GREEK.split(),
strict=True)}  # fmt: skip
_UNICODE = str.maketrans(_SYMBOLS)
_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\u3164\ufe0f\ufeff]")
_ROOT = re.compile(
    r"([√∛∜])\s*(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+\s?))"
)
_ROOT_DEGREE = {"√": "", "∛": "[3]", "∜": "[4]"}
_OVERLINE = re.compile("((?:\\d[\u0304\u0305])+)")

_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:#{1,6}(?!#)|>|[-*+•](?=\s)|\d{1,2}\.(?=\s))[ \t]*(?=\S)", re.MULTILINE)
_STARS = re.compile(r"(?<![\w*\\])(\*{1,3})(?=[^\s*])([^*\n]*?)(?<=\S)\1(?![\w*])")
_UNDERSCORES = re.compile(r"(?<![\w\\}])(_{1,3})(?=[^\s_{])([^_\n]*?)(?<=\S)\1(?!\w)")
_HTML = re.compile(
    r"</?(?:b|strong|i|em|u|mark|code|center|p|span|div|sup class)\b[^<>]*>|<br\s*/?>|~~[^~\n]*~~", re.IGNORECASE
)
_POWER = re.compile(r"(?<=[\w)])\*\*(?=[\w(-])")

_WORDS = r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|textup|mathrm|mbox|hbox|emph|operatorname)\*?\s*"
_WORDS_COMMAND = re.compile(_WORDS + r"\{((?:[^{}]|\^\{-?\d\})*)\}")
_FONT_COMMAND = re.compile(
    r"\\(?:mathbf|mathit|mathsf|mathtt|mathcal|boldsymbol|bm|pmb|ensuremath|mathop)\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(
    r"\\(?:left|right|middle|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|displaystyle|textstyle|limits|nolimits|mathstrut|strut|"
    r"phantom\s*\{[^{}]*\}|phantom|rm|bf|it)(?![A-Za-z])\.?|\\[hv]space\*?\{[^{}]*\}|\\!"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|(?<=\d)\\!,?)\s*(?=\d{3}(?!\d))")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z(])")
_LOST_BREAK = re.compile(r"(?<!\\)\\(?=[-\d.&])")
"""A break between rows that lost a backslash, as in verl's copies of MATH: \\begin{pmatrix}6\\-17\\end{pmatrix}."""
_SPACES = re.compile(r"(?:(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|\\enspace(?![A-Za-z])|\\thinspace(?![A-Za-z])|[\s~])+")


def _lost_words(match: re.Match[str]) -> str:
    """Those copies also lost the command of \\text{ or }."""
    return rf"\text{{{match[2]}}}" if match[2] else match[3] or ""


_SAME_COMMANDS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"), (re.compile(r"\\geq(?:slant|q)?(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\leq(?:slant|q)?(?![A-Za-z])"), r"\\le"), (re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r">=|=>"), r"\\ge "), (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r"\\(?:lt|gt)(?![A-Za-z])"), lambda m: "<" if m[0] == r"\lt" else ">"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset"), (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:dots[cbmio]?|hdots)(?![A-Za-z])|\.{3,}"), r"\\ldots "),
    (re.compile(r"\\(?:degree|degrees)(?![A-Za-z])"), r"^\\circ "), (re.compile(r"\^\s*\{\s*\\circ\s*\}"), r"^\\circ "),
    (re.compile(r"\\backslash"), r"\\setminus"),
    (re.compile(r"(?<![A-Za-z])\{\s*(,?)\s*(and|or)\s*\}|(?<![A-Za-z])\{(,)\}|(?<=[,;\s])\{\}"), _lost_words),
    (re.compile(r"\{?\s*([\w+-]+)\s*\\choose\s*([\w+-]+)\s*\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?:\{\})?[\^_]\{?(\w+)\}?\s*(?:\\text\{)?C\}?_\{?(\w+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?:\{\})?[\^_]\{?(\w+)\}?\s*(?:\\text\{)?P\}?_\{?(\w+)\}?"), r"\\frac{\1!}{(\1-\2)!}"),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\bnp\.(\w+)"), r"\\\1"),  # Minerva's references hold a few numpy expressions
    (re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|sqrt|pi)(?![A-Za-z])"),
    r"\\\1"),
    (re.compile(r"(?<=\d)(sqrt|pi)(?![A-Za-z])"), r"\\\1"), (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=\d)\.(?![\d.\\]|\(\d+\))"), ""),
    (re.compile(r"\\(?:overline|angle|triangle|overrightarrow)\s*(?:\{([A-Z]{1,4})\}|([A-Z]{1,4})(?![A-Za-z]))"),
    r"\1\2"),
)  # fmt: skip
_EDGES = " \t\r\n.,;:"


def normalised(text: str) -> str:
    """The answer in the one notation in which everything else of grading reads it."""
    return unwrapped(tidy_latex(ascii_notation(without_emphasis(text))))


def without_markdown(text: str) -> str:
    """A response without its emphasis and code marks, and the marks that begin headings, quotes and items of lists.

    without_markdown("### **Answer:** `73`")      Answer: 73
    """
    return without_emphasis(_HEADING.sub("", _FENCE.sub("", text)))


def without_emphasis(text: str) -> str:
    """The text without stars, underscores and backquotes around words. Products and indices stay.

    without_emphasis("**73**")                    73
    without_emphasis("2*3*4 = a_1 + b_1")         2*3*4 = a_1 + b_1
    """
    text = _HTML.sub("", text.replace("`", ""))
    text = _STARS.sub(r"\2", _STARS.sub(r"\2", text))
    text = _POWER.sub("^", _UNDERSCORES.sub(r"\2", text))
    return text.replace("**", "")


def ascii_notation(text: str) -> str:
    r"""Unicode digits, signs, fractions, roots and full-width forms as ASCII and LaTeX.

    ascii_notation("２５")       25
    ascii_notation("√2·x²")     \sqrt{2}\cdot x^{2}
    ascii_notation("٢٫٥")       2.5
    ascii_notation("3½")        3\frac{1}{2}
    """
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", text)
    text = _OVERLINE.sub(lambda match: rf"\overline{{{re.sub('[^0-9]', '', match[1])}}}", text)
    text = re.sub("(\\d)\u0307", r"\\dot{\1}", text)
    text = _index(_index(text, _SUPERSCRIPT, "^"), _SUBSCRIPT, "_")
    text = _ROOT.sub(_root, "".join(map(_vulgar_fraction, text)).translate(_UNICODE))
    text = unicodedata.normalize("NFKC", text).translate(_UNICODE)
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def _index(text: str, digits: dict[str, str], mark: str) -> str:
    def rewritten(match: re.Match[str]) -> str:
        return f"{mark}{{{''.join(digits[c] for c in match[0])}}}"

    return re.sub(f"[{''.join(digits)}]+", rewritten, text)


def _root(match: re.Match[str]) -> str:
    inside = next(group for group in match.groups()[1:] if group is not None)
    return rf"\sqrt{_ROOT_DEGREE[match[1]]}{{{inside.strip()}}}"


def _vulgar_fraction(character: str) -> str:
    above, slash, below = unicodedata.normalize("NFKC", character).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}" if slash and above and below else character


def tidy_latex(text: str) -> str:
    r"""One command where LaTeX has several, words in `\text{}`, and no layout.

    tidy_latex(r"\dfrac{1}{2}\,\mathrm{cm}")     \frac{1}{2} \text{cm}
    tidy_latex(r"1{,}000 \geqslant x")           1,000 \ge x
    """
    text = _dollars(_LOST_BREAK.sub(r"\\\\", text) if "matrix" in text else _DOUBLED.sub(r"\\", text))
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = _LAYOUT.sub("", _THOUSANDS.sub(",", text))
    text = _SPACES.sub(" ", _FONT_COMMAND.sub(r"\1", text))
    text = _WORDS_COMMAND.sub(_words, _WORDS_COMMAND.sub(_words, text))
    for pattern, replacement in _SAME_COMMANDS:
        text = pattern.sub(replacement, text)
    return text


def _dollars(text: str) -> str:
    r"""Without the dollars that enclose formulas; one before a number, without a second, is a currency: \$."""
    bare = re.findall(r"(?<!\\)\$", text)
    if len(bare) == 1 and re.match(r"\s*(?:[A-Z]{1,3})?\s*-?\s*\$\s*-?[\d.]", text):
        return text.replace("$", r"\$")
    return re.sub(r"(?<!\\)\$", " ", text) if bare else text


def _words(match: re.Match[str]) -> str:
    content = re.sub(r"\^\{(-?\d)\}", r"^\1", match[1])
    if not re.search(r"[^\W\d_]", content) or content in ("e", "i", "d"):
        return content
    return rf"\text{{{content}}}"


def unwrapped(text: str) -> str:
    r"""Without the boxes, braces and quotes around everything, and the punctuation at its edges.

    unwrapped("{5}.")               5
    unwrapped(r"\boxed{\{1, 2\}}")  \{1, 2\}
    """
    for _ in range(MAX_WRAPPINGS):
        inner = text.lstrip(" \t\r\n,;:=∴").rstrip(_EDGES) if not text.rstrip().endswith("...") else text.strip()
        opened = re.match(r'(?:\\f?box(?:ed)?\s*)?\{|(?:\\text\{)?"', inner)
        if opened and opened[0].endswith('"') and inner.count('"') == 2 and inner.endswith('"'):
            inner = inner.strip('"')
        elif opened and opened[0].endswith("{") and _closes_at_end(inner, opened.end()):
            inner = inner[opened.end() : -1]
        if inner == text:
            break
        text = inner
    return text


def _closes_at_end(text: str, start: int) -> bool:
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.end() == len(text)
    return False


def plain_words(text: str) -> str:
    r"""The text with `\text{...}` replaced by what it holds.

    plain_words(r"5\text{ cm}")   5 cm
    """
    return _SPACES.sub(" ", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)).strip()


def as_written(text: str) -> str:
    """The characters that carry meaning, to compare two answers as written. A space between digits has one (1 1/2)."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).replace(r"\$", "")
    text = re.sub(r"\{([^{}\\]|\\[A-Za-z]+)\}|(?<![\\A-Za-z_^}\]])\{(\w+)\}", r"\1\2", _SPACES.sub(" ", text))
    return re.sub(r"(?<!\d) | (?!\d)", "", text.strip())
