"""The documentation as a site: every link and anchor leads somewhere, and reading it asks no other machine."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.support.documents import PAGES, ROOT, anchors, links

SITE = ROOT / "build" / "site"
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
"""Tags whose attribute a browser follows by itself; `link` does for these kinds:"""
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for target, anchor in links(page):
        there = (page.parent / target) if target else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n## [A link](x.md) too\n[a](b.md#c) [d](#e) [f](https://g) `[h](i)`\n")
    assert links(page) == [("x.md", ""), ("b.md", "c"), ("", "e")]
    assert anchors(page) == {"one-two-three", "a-link-too"}


def in_navigation(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return [name for child in children for name in in_navigation(child)]


def test_every_page_is_in_the_navigation_once() -> None:
    named = in_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert sorted(named) == sorted(name for name in pages if not name.startswith("decisions/") or "README" in name)


class Page(HTMLParser):
    """What a page of the site defines, links to, and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").split()):
            self.loads.append(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_built_site_has_no_dead_link_and_loads_nothing_from_elsewhere() -> None:
    subprocess.run(["make", "site"], cwd=ROOT, check=True, timeout=1100)
    pages = {path: Page(path) for path in SITE.rglob("*.html")}
    assert len(pages) > 40
    foreign = [f"{path}: {url}" for path, page in pages.items() for url in page.loads if urlsplit(url).netloc]
    foreign += [
        f"{path}: {url}"
        for path in SITE.rglob("*.css")
        for url in re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')]+)", path.read_text())
    ]
    assert foreign == []
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            known = pages[there].ids if there in pages else set()
            if not there.exists() or (parts.fragment and unquote(parts.fragment) not in known):
                dead.append(f"{path.relative_to(SITE)}: {link}")
    assert dead == []
