"""The pages of runs come from their folders, without Redis, and only from those."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.dashboard.run_list import RunList, key_of
from services.dashboard.runs_app import create_runs_app
from tests.support.recorded_run import KNOWN_QUESTION, record


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    record(tmp_path / "runs" / "one", rounds=30)
    (tmp_path / "secret.txt").write_text("secret")
    app = create_runs_app(RunList([tmp_path / "runs"]), lambda folder: "")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield client


async def page_of(runs: httpx.AsyncClient) -> str:
    (row,) = (await runs.get("/v1/runs")).json()
    return f"/runs/{row['key']}"


async def test_a_run_has_the_page_and_the_history_that_it_had_while_active(runs: httpx.AsyncClient) -> None:
    page = await page_of(runs)
    document = await runs.get(f"{page}/")
    assert "<html data-recorded" in document.text
    assert "default-src 'none'" in document.headers["content-security-policy"]
    assert (await runs.get("/page/main.js")).status_code == 200
    assert (await runs.get(f"{page}/v1/rounds")).json()["lines"] == 30
    assert (await runs.get(f"{page}/v1/rollouts")).json()["records"][0]["question"] == KNOWN_QUESTION
    assert (await runs.get(f"{page}/v1/staleness")).json() == {"0": 2, "1": 1}
    assert (await runs.get(f"{page}/v1/versions")).json() == []
    assert "tau_start" in (await runs.get(f"{page}/v1/config")).text
    assert len((await runs.get(f"{page}/v1/warnings")).json()) == 3
    assert "<title>Runs" in (await runs.get("/")).text


@pytest.mark.parametrize("key", ["..", "%2e%2e", "..%2f..", "one", ".", "%00", "one/../../secret.txt", "x" * 5000])
@pytest.mark.parametrize("rest", ["", "/", "/v1/rounds", "/../secret.txt", "/%2e%2e/%2e%2e/secret.txt"])
async def test_no_path_in_a_request_reaches_the_disk(runs: httpx.AsyncClient, key: str, rest: str) -> None:
    answer = await runs.get(f"/runs/{key}{rest}")
    assert answer.status_code in (404, 422) or "<title>Runs" in answer.text
    assert "secret" not in answer.text.replace("secret.txt", "")


async def test_nothing_can_be_asked_of_a_run_here(runs: httpx.AsyncClient) -> None:
    page = await page_of(runs)
    for path in ("/v1/control/stop", f"{page}/v1/control/stop", f"{page}/v1/rounds", "/v1/runs"):
        assert (await runs.post(path)).status_code in (404, 405)


async def test_pages_from_elsewhere_are_refused(runs: httpx.AsyncClient) -> None:
    page = await page_of(runs)
    for path in ("/", "/v1/runs", f"{page}/", f"{page}/v1/rounds"):
        assert (await runs.get(path, headers={"Host": "evil.example"})).status_code == 403
        assert (await runs.get(path, headers={"Origin": "http://evil.example"})).status_code == 403


async def test_a_run_that_is_gone_is_gone_and_a_new_one_comes(tmp_path: Path, runs: httpx.AsyncClient) -> None:
    new = record(tmp_path / "later" / "new", rounds=3).path
    app = create_runs_app(RunList([new]), lambda folder: "")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get(f"/runs/{key_of(new)}/v1/rounds")).json()["lines"] == 3
    assert (await runs.get(f"/runs/{key_of(new)}/v1/rounds")).status_code == 404
