"""The page in front of a run that is over: formulas are drawn, and an answer stays text whatever it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from services.net import free_port
from services.run_folder import RunFolder
from tests.support.browser import Sept, Visitor, answers, eventually, sept
from tests.support.recorded_run import HOSTILE_ANSWER, record

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@contextmanager
def serving(tmp_path: Path, redis_url: str) -> Iterator[Sept]:
    """The services of a run whose other parts are not there; they end with the block."""
    folder = record(tmp_path / "run", rounds=1500)
    config, port = tmp_path / "services.toml", free_port()
    config.write_text(f'[run]\ndir = "{folder.path}"\n[redis]\nurl = "{redis_url}"\n[services]\nport = {port}\n')
    url = f"http://127.0.0.1:{port}"
    with sept("services", "--config", str(config), log=tmp_path / "services.log"), httpx.Client(base_url=url) as http:
        eventually("the services", lambda: answers(http), 60)
        yield Sept(url, folder.path, http)


@pytest.fixture
def recorded(tmp_path: Path, redis_url: str) -> Iterator[Sept]:
    with serving(tmp_path, redis_url) as services:
        yield services


def test_an_open_page_says_why_its_run_failed_and_steers_no_more(
    tmp_path: Path, redis_url: str, visit: Visitor
) -> None:
    with serving(tmp_path, redis_url) as services:
        page = visit(f"{services.url}/").page
        expect(page.locator("#state")).to_have_text("starting")
        expect(page.get_by_role("button", name="Pause", exact=True)).to_be_enabled()
        events = [{"event": "run_starting"}, {"event": "run_failed", "error": "generator-0: no memory is left"}]
        log = RunFolder(services.folder).log_of("supervisor")
        log.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    expect(page.locator("#state")).to_have_text("failed")
    expect(page.locator("#detail")).to_have_text("generator-0: no memory is left")
    expect(page.locator("#command")).to_have_text(f"sept run {services.folder / 'config.toml'}")
    for name in ("Pause", "Checkpoint now", "Stop after this round", "Apply", "Export", "Roll back"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()


def test_answers_are_drawn_and_never_run(recorded: Sept, visit: Visitor) -> None:
    seen = visit(f"{recorded.url}/#/rollouts")
    page = seen.page
    expect(page.get_by_role("article").first.locator("math mfrac")).to_have_count(6)
    expect(page.get_by_text(HOSTILE_ANSWER)).to_be_visible()
    expect(page.get_by_text("$\\unknown{x}$")).to_contain_text("It costs $5 or $6, so (1234)")
    expect(page.locator("math mtr")).to_have_count(2)
    expect(page.locator(".answer strong")).to_have_text("so")
    assert page.title() != "1"
    assert seen.complaints == []
    seen.shot("desktop-formulas")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tokens_of_an_answer_are_coloured_by_likelihood_and_by_version(
    recorded: Sept, visit: Visitor, axe: str, scheme: str
) -> None:
    seen = visit(f"{recorded.url}/#/rollouts?like=r001497-00003.0", color_scheme=scheme)
    page, choice = seen.page, seen.page.get_by_label("Colour tokens by")
    choice.select_option("likelihood")
    expect(page).to_have_url(re.compile("tokens=likelihood"))
    expect(page.locator(".tokens")).to_have_text("It is 24\nor 😀.■")
    looks = page.locator(".tokens .token").evaluate_all("all => all.map(one => one.className)")
    assert [look[-1] for look in looks] == list("001203300")
    page.get_by_text("4", exact=True).hover()
    expect(page.get_by_text("Token 4 of 9, “4”: log p -3, p 5.0 %, version 4.")).to_be_visible()
    page.get_by_role("group", name="answer, token by token").press("ArrowRight")
    expect(page.get_by_text("Token 5 of 9, “↵”: log p 0, p 100 %, version 4.")).to_be_visible()
    page.get_by_text("😀").hover()
    expect(page.get_by_text("log p -15.9 or less, version 5.")).to_be_visible()
    expect(page.locator("#legend")).to_contain_text("10 to 50 %")
    seen.shot(f"{scheme}-tokens-likelihood")
    choice.select_option("version")
    expect(page.locator(".tokens .name")).to_have_text(["v4", "v5"])
    page.reload()
    expect(page.locator(".tokens .name")).to_have_text(["v4", "v5"])
    seen.shot(f"{scheme}-tokens-version")
    page.evaluate(axe)
    assert not [one for one in page.evaluate("axe.run()")["violations"] if one["impact"] in {"serious", "critical"}]
    page.get_by_role("link", name="Rollouts").click()
    expect(page.get_by_role("article")).to_have_count(11)
    choice.select_option("version")
    expect(page.get_by_text("Of this answer the tokens are not recorded.")).to_have_count(9)
    assert seen.complaints == []


def test_rollouts_are_filtered_ranked_and_shown_beside_their_group(recorded: Sept, visit: Visitor) -> None:
    seen = visit(f"{recorded.url}/#/rollouts")
    page = seen.page
    articles = page.get_by_role("article")
    expect(articles).to_have_count(11)
    page.get_by_text("More filters").click()
    page.get_by_label("Ended by").select_option("length")
    page.get_by_role("button", name="Search").click()
    expect(articles).to_have_count(1)
    expect(page).to_have_url(re.compile("ended_by=length"))
    page.reload()
    expect(articles).to_have_count(1)
    page.get_by_role("link", name="its group").click()
    expect(page.locator("#found")).to_contain_text("All answers of one group. 1 shown")
    page.get_by_role("link", name="link", exact=True).click()
    expect(page.locator("#found")).to_contain_text("One rollout. 1 shown")
    page.get_by_role("button", name="Show all").click()
    expect(articles).to_have_count(11)
    page.get_by_label("Order").select_option("shortest")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_contain_text("shortest first")
    assert seen.complaints == []
    seen.shot("desktop-rollouts-filtered")


def test_a_long_history_is_joined_into_points_and_zooms_to_rounds(recorded: Sept, visit: Visitor) -> None:
    seen = visit(f"{recorded.url}/")
    expect(seen.page.locator("#shown")).to_contain_text("4 to a point")
    expect(seen.page.locator('[data-chart="Loss"] path.band')).to_have_count(1)
    expect(seen.page.locator("#shown")).to_contain_text("Rounds 0 to 1,499")
    first = seen.page.locator("figure.chart").first
    expect(first).to_have_attribute("data-chart", "Quality: pass@1")
    expect(first.locator("circle")).to_have_count(3 * 15)
    expect(first.locator(".legend")).to_contain_text("mean (tau 1)")
    seen.shot("desktop-quality")
    seen.page.get_by_role("button", name="Last 50", exact=True).click()
    expect(seen.page.locator("#shown")).to_contain_text("Rounds 1,450 to 1,499.")
    expect(seen.page.locator("#state")).to_have_text("starting")
    expect(seen.page.locator("#detail")).to_have_text("waiting for the learner")
    seen.shot("desktop-long-history")
