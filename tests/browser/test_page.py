"""The page in front of a run that is going: it shows, it steers, it keeps to itself."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import PHONE, TOKEN, Sept, Visit, Visitor, eventually, sept

pytestmark = [pytest.mark.browser, pytest.mark.slow]

VIEWS = ["overview", "rollouts", "versions", "settings", "messages"]


def rounds_done(page: Page) -> int:
    return int((page.locator("#round").text_content() or "0").split("/")[0].replace(",", "").strip("– ") or 0)


def part(page: Page, part_id: str) -> Any:
    return page.locator(f'tr[data-part="{part_id}"]')


def assert_quiet(seen: Visit, run: Sept) -> None:
    assert seen.complaints == []
    assert {url for url in seen.requests if not url.startswith(f"{run.url}/")} == set()


def test_a_wrong_token_is_refused_and_the_right_one_opens_what_the_link_named(run: Sept, visit: Visitor) -> None:
    page = visit(f"{run.url}/#/rollouts?text=1").page
    expect(page).to_have_url(f"{run.url}/login#/rollouts?text=1")
    page.get_by_label("Token").fill("a wrong one")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not the token")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#state")).to_have_text("running")
    expect(page).to_have_url(f"{run.url}/#/rollouts?text=1")
    expect(page.locator("section#rollouts")).to_be_visible()
    assert TOKEN not in page.url
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{run.url}/login")


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_loads_without_a_complaint_or_a_request_elsewhere(run: Sept, inside: Visitor, view: str) -> None:
    seen = inside(view)
    expect(seen.page.get_by_role("link", name=view.capitalize(), exact=True)).to_have_attribute("aria-current", "page")
    seen.page.wait_for_load_state("load")
    expect(seen.page.locator("#toast")).to_be_empty()
    assert_quiet(seen, run)
    seen.shot(f"desktop-{view}")


def test_values_move_while_the_run_goes_on(run: Sept, inside: Visitor) -> None:
    seen = inside()
    before = rounds_done(seen.page)
    eventually("another round on the page", lambda: rounds_done(seen.page) > before, 60)
    loss = seen.page.locator('[data-chart="Loss"] path.line')
    drawn = loss.get_attribute("d")
    eventually("a longer line of losses", lambda: loss.get_attribute("d") != drawn, 60)
    assert_quiet(seen, run)


def test_history_is_there_for_whoever_comes_later(run: Sept, inside: Visitor) -> None:
    done = run.status()["round"]
    seen = inside()
    expect(seen.page.locator("#shown")).to_contain_text("Rounds 0 to")
    shown = re.search(r"to ([\d,]+)", seen.page.locator("#shown").text_content() or "")
    assert shown is not None
    assert int(shown[1].replace(",", "")) >= done - 1


def test_dragging_over_a_chart_zooms_all_of_them(inside: Visitor) -> None:
    page = inside().page
    expect(page.locator("#shown")).to_contain_text("Rounds 0 to")
    chart = page.locator('[data-chart="Loss"] svg')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, middle, steps=4)
    page.mouse.up()
    expect(page.locator("#shown")).not_to_contain_text("Rounds 0 to")
    page.get_by_role("button", name="Whole run").click()
    expect(page.locator("#shown")).to_contain_text("Rounds 0 to")


def test_pausing_stops_new_rounds_within_one(run: Sept, inside: Visitor) -> None:
    page = inside().page
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator("#state")).to_have_text("paused")
    eventually("a learner that pauses", lambda: run.status()["learner"]["state"] == "paused", 60)
    paused_at = run.status()["learner"]["weight_version"]
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#state")).to_have_text("running")
    eventually("the next round", lambda: run.status()["learner"]["weight_version"] > paused_at, 60)
    page.goto(f"{run.url}/#/messages")
    expect(page.locator("#audit")).to_contain_text("pause")


def test_a_stop_asks_first_and_can_be_taken_back(run: Sept, inside: Visitor) -> None:
    page = inside().page
    page.get_by_role("button", name="Stop after this round").click()
    expect(page.get_by_role("dialog")).to_contain_text("Stop after this round?")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Stop after this round")).to_be_enabled()
    assert run.http.get("/v1/events/last", params={"kind": "control"}).json()[0]["fields"]["action"] != "stop"


def actions(run: Sept) -> list[str]:
    """What was asked for and what became of it, newest first."""
    events = run.http.get("/v1/events/last", params={"kind": "control"}).json()
    return [event["fields"]["action"] for event in events]


def test_a_checkpoint_an_export_and_a_way_back_which_asks_first(run: Sept, inside: Visitor) -> None:
    seen = inside()
    page = seen.page
    page.get_by_role("button", name="Checkpoint now").click()
    eventually("a checkpoint", lambda: "checkpointed" in actions(run), 60)
    page.get_by_role("button", name="Pause", exact=True).click()
    eventually("a learner that pauses", lambda: run.status()["learner"]["state"] == "paused", 60)
    versions = run.http.get("/v1/versions").json()
    newest = versions[0]["weight_version"]
    older = min(version["weight_version"] for version in versions if version["checkpointed"])
    assert older < newest
    target = page.get_by_label("Version", exact=True)
    expect(target.locator(f'option[value="{newest}"][data-checkpoint]')).to_have_count(1, timeout=20_000)
    target.select_option(str(newest - 3))
    expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    page.get_by_role("button", name="Export").click()
    eventually("the export", lambda: (run.folder / "exports" / f"v{newest - 3:06d}" / "config.json").exists(), 60)
    target.select_option(str(older))
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"Go back to version {older}?")
    seen.shot("desktop-rollback")
    page.get_by_role("button", name="Cancel").click()
    assert "rollback" not in actions(run)
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("button", name=f"Go back to {older}").click()
    eventually("the way back", lambda: "rolled_back" in actions(run), 60)
    assert run.status()["weight_version"] == older
    assert run.status()["state"] == "paused"
    page.get_by_role("button", name="Resume").click()
    eventually("the way on", lambda: run.status()["round"] > newest, 120)
    page.goto(f"{run.url}/#/messages")
    expect(page.locator("#audit")).to_contain_text(f"rolled back version {older}")
    seen.shot("desktop-messages-after-rollback")
    assert_quiet(seen, run)


def test_scaling_to_three_shows_three_rows_with_versions(run: Sept, inside: Visitor) -> None:
    seen = inside()
    page = seen.page
    page.get_by_role("spinbutton", name="Generators").fill("3")
    page.get_by_role("button", name="Apply").click()
    for number in range(3):
        expect(part(page, f"generator-{number}").locator('[data-label="version"]')).to_have_text(
            re.compile(r"^\d+$"), timeout=120_000
        )
    seen.shot("desktop-three-generators")
    run.http.post("/v1/control/generators", json={"generators_target": 1}).raise_for_status()
    expect(part(page, "generator-2")).to_have_count(0, timeout=120_000)


def test_a_killed_generator_is_marked_lost_within_ten_seconds(run: Sept, inside: Visitor) -> None:
    seen = inside()
    guest = part(seen.page, "guest")
    config = str(run.folder / "config.toml")
    with sept("generator", "--config", config, "--id", "guest", log=run.folder / "guest.txt") as process:
        expect(guest.locator('[data-label="version"]')).to_have_text(re.compile(r"^\d+$"), timeout=120_000)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        expect(guest).to_have_attribute("data-lost", "", timeout=10_000)
    expect(guest.locator('[data-label="state"]')).to_have_text("lost")
    expect(seen.page.locator("#detail")).to_contain_text("guest")
    seen.shot("desktop-lost-generator")
    assert_quiet(seen, run)


def test_the_rollout_browser_finds_a_known_question(run: Sept, inside: Visitor) -> None:
    question = run.http.get("/v1/rollouts", params={"limit": 1}).json()["records"][0]["question"]
    page = inside("rollouts").page
    page.get_by_label("Question or answer contains").fill(question)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_contain_text("are recorded")
    first = page.get_by_role("article").first
    expect(first.get_by_role("group", name="question")).to_have_text(question)
    expect(first.get_by_role("group", name="versions")).to_contain_text("v")


@pytest.mark.parametrize(("scheme", "viewport"), [("light", None), ("dark", None), ("light", PHONE), ("dark", PHONE)])
def test_axe_finds_nothing_serious(inside: Visitor, axe: str, scheme: str, viewport: dict[str, int] | None) -> None:
    seen = inside(color_scheme=scheme, viewport=viewport)
    seen.page.evaluate(axe)
    seen.shot(f"{'phone' if viewport else 'desktop'}-{scheme}")
    for view in VIEWS:
        seen.page.get_by_role("link", name=view.capitalize(), exact=True).click()
        seen.page.locator(f"section#{view} > :nth-child(2) *").first.wait_for(state="attached")
        found = seen.page.evaluate("axe.run()")["violations"]
        serious = [
            f"{view}: {one['id']} {[node['target'] for node in one['nodes']][:3]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]
        assert serious == []
        assert not seen.page.evaluate("document.documentElement.scrollWidth > innerWidth"), f"{view} is too wide"
