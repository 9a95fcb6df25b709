"""The documents as a test reads them: pages, headings, links, and what their code blocks hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
COMMAND_PAGES = [page for page in PAGES if page.name != "log.md"]
"""Those that say what works now; the log says what was run once."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of that language."""
    return [text for found, text in _FENCE.findall(page.read_text()) if found == language]


def blocks(page: Path) -> Iterator[str]:
    """All code blocks of the page: indented by four spaces after an empty line, or fenced."""
    text = page.read_text()
    yield from (block for _, block in _FENCE.findall(text))
    block: list[str] = []
    before_is_empty = True
    for line in [*_FENCE.sub("", text).splitlines(), ""]:
        if line.startswith("    ") and (block or before_is_empty):
            block.append(line[4:])
        elif block and line.strip():
            yield "\n".join(block).rstrip() + "\n"
            block = []
        elif block:
            block.append("")
        before_is_empty = not line.strip()
    if block:
        yield "\n".join(block).rstrip() + "\n"


def command_lines(page: Path) -> Iterator[str]:
    """The lines of the page's code blocks, continued ones joined."""
    for block in blocks(page):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as the site makes them."""
    prose = _FENCE.sub("", page.read_text())
    headings = re.findall(r"^#{1,6} (.+)$", prose, re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


def links(page: Path) -> list[tuple[str, str]]:
    """(target, anchor) of the page's links to other files; the target is empty for the page itself."""
    prose = re.sub(r"`[^`]*`", "", _FENCE.sub("", page.read_text()))
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = [link for link in found if not link.startswith(("http:", "https:"))]
    return [(link.partition("#")[0], link.partition("#")[2]) for link in local]
