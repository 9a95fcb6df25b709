"""The built documentation in a real browser: pages and search work, and no request goes to another machine."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.support.browser import PHONE, ROOT, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The site as `make site` builds it, over HTTP."""
    subprocess.run(["make", "site"], cwd=ROOT, check=True, timeout=1500)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(ROOT / "build/site"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("scheme", "viewport"), [("light", None), ("dark", PHONE)])
def test_pages_and_search_ask_no_other_machine(
    site: str, visit: Visitor, scheme: str, viewport: dict[str, int] | None
) -> None:
    seen = visit(f"{site}/index.html", viewport=viewport, color_scheme=scheme)
    seen.page.get_by_role("heading", name="When this, when TRL, when verl").wait_for()
    for name in ("quick-start", "troubleshooting", "configuration", "architecture"):
        seen.page.goto(f"{site}/{name}.html")
        seen.page.get_by_role("heading", level=1).wait_for()
    if viewport:
        seen.page.locator("label[for=__search]").first.click()
    seen.page.locator("input.md-search__input").press_sequentially("rollback")
    seen.page.locator(".md-search-result__item").first.wait_for()
    assert {urlsplit(url).netloc for url in seen.requests if not url.startswith("data:")} == {urlsplit(site).netloc}
    assert seen.complaints == []
