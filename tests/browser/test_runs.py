"""`sept page` in a browser: the list of runs, each of their pages, several in the same charts, reports of studies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from services import durable
from services.run_folder import RunFolder
from tests.support.browser import OUTPUT, PHONE, Visit, Visitor, eventually, sept
from tests.support.recorded_run import metrics, record

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = 5000
LOADING = """() => {
  const loaded = performance.getEntriesByType("resource").filter((one) => !one.name.includes("/v1/live"));
  const rounds = loaded.filter((one) => one.name.includes("/v1/rounds"));
  return {
    script_ms: performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd,
    rounds_ms: Math.max(...rounds.map((one) => one.responseEnd)),
    bytes: loaded.reduce((sum, one) => sum + one.transferSize, 0),
  };
}"""
"""When the page could be used, when its charts had their numbers, and what was sent for both."""
CELLS = 15


def study(folder: Path) -> None:
    """Runs of five methods with three seeds each, and their report."""
    methods = {}
    for method in range(5):
        label = f"A method with quite a long name, number {method}"
        for seed in range(3):
            run = record(folder / f"m{method}-s{seed}", rounds=300)
            durable.write_file(run.config, f"[run]\nseed = {seed}\n[sampling]\ntau_start = {0.2 + method / 5}\n")
        means = {
            name: {"mean": 40.0 + 9 * method, "low": 35.0 + 9 * method, "high": 45.0 + 9 * method}
            for name in ("pass@1", "AVG")
        }
        methods[f"m{method}"] = {
            "label": label,
            "temperature": 1.0,
            "seeds": {"0": {}, "1": {}, "2": {}},
            "means": means,
            "published": 50.0,
        }
    claims = [{"claim": "More is better.", "difference": {"mean": 9.0, "low": 1.0, "high": 17.0}, "verdict": "holds"}]
    durable.write_file(
        folder / "report.json", json.dumps({"title": "Fifteen runs", "methods": methods, "claims": claims})
    )


def note(folder: RunFolder, **event: str) -> None:
    with folder.log_of("supervisor").open("a") as log:
        log.write(json.dumps(event) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long run that failed, and a study of fifteen runs."""
    root = tmp_path_factory.mktemp("runs")
    long = record(root / "long", rounds=3)
    rounds = (metrics(number, grad_norm=9.0 if number == 2345 else 0.8) for number in range(LONG))
    durable.write_file(long.metrics, "".join(f"{one.as_line()}\n" for one in rounds))
    note(long, event="run_starting")
    note(long, event="run_failed", error="learner: the disk is full")
    study(root / "study")
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    log = root / "page.txt"
    with sept("page", str(root), log=log):
        found = eventually("the page's address", lambda: re.search(r"^page: (\S+)/$", log.read_text(), re.M), 60)
        yield found[1]


@pytest.fixture(scope="module")
def key_of(url: str) -> Callable[[str], str]:
    """key_of("long"): by which an address names the run in that folder."""
    rows = httpx.get(f"{url}/v1/runs", timeout=60).json()
    keys = {Path(row["folder"]).name: row["key"] for row in rows}
    return keys.__getitem__


def assert_quiet(seen: Visit, url: str) -> None:
    assert seen.complaints == []
    assert {asked for asked in seen.requests if not asked.startswith((f"{url}/", "blob:"))} == set()


def test_the_list_says_how_each_run_stands_and_what_differs(url: str, visit: Visitor) -> None:
    seen = visit(url)
    rows = seen.page.locator("#list tbody tr")
    expect(rows).to_have_count(CELLS + 1)
    failed = rows.filter(has_text="failed")
    expect(failed).to_have_count(1)
    expect(failed).to_contain_text("the disk is full")
    expect(rows.filter(has_text="finished")).to_have_count(CELLS)
    expect(seen.page.locator("#list thead")).to_contain_text("sampling.tau_start")
    expect(rows.filter(has_text="m4-s1").locator('[data-label="sampling.tau_start"]')).to_have_text("1")
    assert_quiet(seen, url)
    seen.shot("runs-list")


def test_a_failed_run_says_why_and_what_to_do_and_cannot_be_steered(
    url: str, visit: Visitor, key_of: Callable[[str], str], root: Path
) -> None:
    seen = visit(f"{url}/runs/{key_of('long')}/")
    expect(seen.page.locator("#state")).to_have_text("failed")
    expect(seen.page.locator("#detail")).to_have_text("learner: the disk is full")
    expect(seen.page.locator("#command")).to_have_text(f"sept run {root / 'long' / 'config.toml'}")
    expect(seen.page.locator(".steering")).to_be_hidden()
    for view in ("rollouts", "versions", "settings", "messages"):
        seen.page.goto(f"{url}/runs/{key_of('long')}/#/{view}")
        expect(seen.page.locator(f"section#{view}")).to_be_visible()
        expect(seen.page.locator("#toast")).to_be_empty()
    assert_quiet(seen, url)


def test_an_open_page_hears_how_its_run_ends(
    url: str, visit: Visitor, key_of: Callable[[str], str], root: Path
) -> None:
    seen = visit(f"{url}/runs/{key_of('m0-s0')}/")
    expect(seen.page.locator("#state")).to_have_text("finished")
    note(RunFolder(root / "study" / "m0-s0"), event="run_failed", error="services: gone")
    expect(seen.page.locator("#state")).to_have_text("failed")
    expect(seen.page.locator("#detail")).to_have_text("services: gone")
    RunFolder(root / "study" / "m0-s0").log_of("supervisor").unlink()


def chart(page: Page, title: str) -> str:
    return page.locator(f'[data-chart="{title}"] path.line').first.get_attribute("d") or ""


def test_a_long_run_is_there_at_once_and_then_costs_nothing(
    url: str, visit: Visitor, key_of: Callable[[str], str]
) -> None:
    seen = visit(f"{url}/runs/{key_of('long')}/")
    expect(seen.page.locator("#shown")).to_contain_text("Rounds 0 to 4,999, 16 to a point")
    points = chart(seen.page, "Loss").count("L")
    assert 300 < points < 400
    band = seen.page.locator('[data-chart="Gradient norm"] path.band')
    assert float(min(re.findall(r",([\d.]+)", band.get_attribute("d") or ""), key=float)) < 20, (
        "the spike is at the top"
    )
    figures = seen.page.evaluate(LOADING)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "long-run.json").write_text(json.dumps(figures))  # times are for a quiet machine to tell
    assert figures["bytes"] < 300_000
    asked = len(seen.requests)
    expect(seen.page.locator("#axis")).to_have_value("rounds")
    for _ in range(25):
        seen.page.evaluate(
            "new Promise((resolve) => setTimeout(resolve, 200))"
        )  # a page that does nothing has no event
    assert [one for one in seen.requests[asked:] if "/v1/rounds" in one] == []


def test_what_is_chosen_stands_in_the_address(url: str, visit: Visitor, key_of: Callable[[str], str]) -> None:
    page = visit(f"{url}/runs/{key_of('long')}/").page
    expect(page.locator("#shown")).to_contain_text("Rounds 0 to 4,999")
    page.get_by_label("Along").select_option("tokens")
    page.get_by_label("Log scale").check()
    page.get_by_label("Smooth").fill("0.6")
    page.get_by_label("Find").fill("loss")
    expect(page.locator('[data-chart="Gradient norm"]')).to_be_hidden()
    expect(page.locator('[data-chart="Loss"] path.faint')).to_have_count(1)
    box = page.locator('[data-chart="Loss"] svg').bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, middle, steps=4)
    page.mouse.up()
    expect(page.locator("#shown")).to_contain_text(re.compile(r"^Rounds 2,\d\d\d to 4,\d\d\d,"))
    shown = page.locator("#shown").text_content()
    page.reload()
    expect(page.locator("#shown")).to_have_text(shown or "")
    expect(page.get_by_label("Along")).to_have_value("tokens")
    expect(page.get_by_label("Log scale")).to_be_checked()
    expect(page.locator('[data-chart="Gradient norm"]')).to_be_hidden()
    page.locator('[data-chart="Loss"] svg').dblclick()
    expect(page.locator("#shown")).to_contain_text("Rounds 0 to 4,999")


def test_a_chart_is_saved_as_numbers_and_as_a_picture(url: str, visit: Visitor, key_of: Callable[[str], str]) -> None:
    seen = visit(f"{url}/runs/{key_of('m1-s0')}/")
    page = seen.page
    with page.expect_download() as numbers:
        page.get_by_role("button", name="CSV: Loss").click()
    lines = numbers.value.path().read_text().splitlines()
    assert lines[0] == "round,loss"
    assert len(lines) == 301
    assert lines[1] == f"0,{metrics(0).loss:.6g}"
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG: Loss").click()
    assert picture.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.value.path().stat().st_size > 5000
    page.get_by_role("button", name="Enlarge: Loss").click()
    expect(page.get_by_role("button", name="Enlarge: Loss")).to_have_attribute("aria-pressed", "true")
    assert_quiet(seen, url)


def test_fifteen_runs_are_compared_in_the_same_charts(url: str, visit: Visitor) -> None:
    seen = visit(url)
    boxes = seen.page.get_by_role("checkbox")
    for place in range(1, 4):
        boxes.nth(place).check()
    seen.page.get_by_role("button", name="Compare").click()
    expect(seen.page.locator('[data-chart="Loss"] path.line')).to_have_count(3)
    seen.page.goto(f"{url}/#/compare")
    expect(seen.page.locator('[data-chart="Loss"] path.line')).to_have_count(CELLS + 1)
    expect(seen.page.locator("#differences")).to_contain_text("sampling.tau_start")
    legend = seen.page.locator('[data-chart="Loss"] .legend')
    expect(legend).to_contain_text("m4-s2")
    assert_quiet(seen, url)
    seen.shot("runs-compare")


def test_the_report_of_a_study_is_a_page(url: str, visit: Visitor) -> None:
    seen = visit(f"{url}/#/studies")
    report = seen.page.get_by_role("article", name="Fifteen runs")
    expect(report.locator(".track")).to_have_count(5)
    expect(report).to_contain_text("A method with quite a long name, number 4")
    expect(report).to_contain_text("76.0 % (published 50.0 %)")
    expect(report).to_contain_text("holds")
    assert_quiet(seen, url)
    seen.shot("runs-study")


@pytest.mark.parametrize(("scheme", "viewport"), [("light", None), ("dark", None), ("light", PHONE), ("dark", PHONE)])
def test_axe_finds_nothing_serious(
    url: str, visit: Visitor, key_of: Callable[[str], str], axe: str, scheme: str, viewport: dict[str, int] | None
) -> None:
    for name, path in {
        "list": "",
        "compare": "#/compare",
        "study": "#/studies",
        "run": f"runs/{key_of('m2-s0')}/",
    }.items():
        seen = visit(f"{url}/{path}", color_scheme=scheme, viewport=viewport)
        seen.page.locator("table:visible, .chart:visible").first.wait_for()
        seen.page.evaluate(axe)
        found = seen.page.evaluate("axe.run()")
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]
        assert told == [], f"{name}, {scheme}"
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        seen.shot(f"runs-{name}-{scheme}-{'phone' if viewport else 'desktop'}")
