"""A run and a browser for the tests of the page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page

ROOT = Path(__file__).parents[2]


OUTPUT = ROOT / "test-output" / "page"
"""Screenshots, for a person to look at."""


TOKEN = "the token of the browser tests"


PHONE = {"width": 390, "height": 844}


@dataclass
class Sept:
    """A process of `sept` and where its services listen."""

    url: str
    folder: Path
    http: httpx.Client = field(repr=False)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get("/v1/status").raise_for_status().json()
        return answer


def eventually(what: str, look: Callable[[], Any], deadline_s: float) -> Any:
    """The first true answer of `look`; fails by name when there is none in time."""
    give_up_at = time.monotonic() + deadline_s
    while time.monotonic() < give_up_at:
        found = look()
        if found:
            return found
        time.sleep(0.1)  # the other side is another process: there is nothing to await
    pytest.fail(f"waited {deadline_s:.0f} s for {what}")


@contextmanager
def sept(*arguments: str, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """One `sept` command, ended by SIGTERM with everything that it started."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environ
    command = [sys.executable, "-m", "sept", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.TransportError:
        return False


@dataclass
class Visit:
    """An open page with everything that it complained about and asked for."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def shot(self, name: str) -> None:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)


Visitor = Callable[..., Visit]
