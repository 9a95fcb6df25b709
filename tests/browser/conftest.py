"""A real Chromium in front of a real run: `sept run` with scripted answers and a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, expect, sync_playwright

from tests.support.browser import ROOT, TOKEN, Sept, Visit, Visitor, answers, eventually, sept

AXE = ROOT / ".cache" / "axe"
AXE_VERSION = "4.14.1"
START_S = 240.0
DESKTOP = {"width": 1440, "height": 900}


def make_model(folder: Path) -> None:
    """A random model whose vocabulary holds every token that a scripted engine says."""
    from studies.addition import make_tokenizer
    from tests.support import tiny_models

    tiny_models.save(folder, tiny_models.config(vocab_size=300, bos_token_id=1, eos_token_id=12))
    make_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sept]:
    """A run with one generator that has done its first rounds."""
    folder = tmp_path_factory.mktemp("browser")
    make_model(folder / "model")
    prompts = [json.dumps({"question": f"{one}+{other}="}) for one in range(10, 99) for other in range(10, 20)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    config = folder / "run.toml"
    config.write_text(
        f'[run]\ndir = "{folder / "run"}"\n[model]\npath = "{folder / "model"}"\n'
        f'[data]\npath = "{folder / "prompts.jsonl"}"\nchat_template = "none"\nmax_prompt_tokens = 8\n'
        "[sampling]\nmax_response_tokens = 24\n"
        "[training]\nrounds = 100000\nprompts_per_round = 32\nsteps_per_round = 1\nmicro_batch_tokens = 4096\n"
        '[generator]\ncount = 1\nengine = "scripted"\n[services]\nport = 0\n'
    )
    environ = {"SEPT_SERVICES__TOKEN": TOKEN}
    with sept("run", str(config), log=folder / "run.log", **environ) as process:
        endpoints = folder / "run" / "endpoints.json"
        eventually("endpoints.json", lambda: endpoints.exists() or process.poll() is not None, START_S)
        url = json.loads(endpoints.read_text())["services_url"]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as http:
            started = Sept(url, folder / "run", http)
            eventually("the first rounds", lambda: answers(http) and started.status()["round"] >= 3, START_S)
            yield started


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Not for the session: while Playwright runs, tests with an event loop of their own cannot."""
    path = os.environ.get("SEPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium; name one in SEPT_CHROMIUM")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visitor]:
    """visit(url, color_scheme="dark", viewport=PHONE): opens an address in a browser of its own."""
    contexts: list[BrowserContext] = []

    def open_page(url: str, *, viewport: dict[str, int] | None = None, color_scheme: Any = "light") -> Visit:
        size: Any = viewport or DESKTOP
        context = browser.new_context(viewport=size, color_scheme=color_scheme, reduced_motion="reduce")
        context.set_default_timeout(60_000)
        contexts.append(context)
        seen = Visit(context.new_page(), context)
        watch(seen)
        seen.page.goto(url)
        return seen

    yield open_page
    for context in contexts:
        context.close()


def watch(seen: Visit) -> None:
    def said(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            seen.complaints.append(message.text)

    seen.page.on("console", said)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))


@pytest.fixture
def inside(run: Sept, visit: Visitor) -> Visitor:
    """inside("rollouts", viewport=PHONE): a view of the run, logged in."""

    def open_view(view: str = "overview", **options: Any) -> Visit:
        seen = visit(f"{run.url}/", **options)
        seen.page.get_by_label("Token").fill(TOKEN)
        seen.page.get_by_role("button", name="Log in").click()
        seen.page.get_by_text("running", exact=True).wait_for()
        seen.page.goto(f"{run.url}/#/{view}")
        seen.page.locator(f"section#{view}").wait_for()
        return seen

    return open_view


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once into .cache."""
    source = AXE / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core comes from npm, which is not here")
        command = [
            npm,
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(AXE),
            f"axe-core@{AXE_VERSION}",
        ]
        AXE.mkdir(parents=True, exist_ok=True)
        if subprocess.run(command, timeout=120, check=False).returncode != 0:
            pytest.skip("axe-core could not be fetched from npm")
    return source.read_text()
