"""`sept page` serves the pages of runs on loopback, says where, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy import endpoints
from deploy.endpoints import Endpoints
from deploy.operate.page import live_url, show_pages
from services.errors import ConfigError
from tests.support.recorded_run import record


def test_the_command_shows_a_finished_run_and_ends_by_a_signal(tmp_path: Path) -> None:
    record(tmp_path / "runs" / "one", rounds=300)
    command = [sys.executable, "-m", "sept", "page", str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        counted = next(line for line in lines if "below" in line)
        address = next(line for line in lines if line.startswith("page: ")).split()[1]
        try:
            (row,) = httpx.get(f"{address}v1/runs", timeout=60).json()
            with httpx.stream("GET", f"{address}runs/{row['key']}/v1/live", timeout=60) as stream:
                frame = json.loads(next(line for line in stream.iter_lines() if line).removeprefix("data: "))
                process.send_signal(signal.SIGTERM)  # an open stream does not hold it up
                assert process.wait(60) == 0
        finally:
            process.kill()
    assert counted.startswith("1 run below ")
    assert address.startswith("http://127.0.0.1:")
    assert (row["state"], frame["status"]["state"], frame["requests"]) == ("finished", "finished", None)
    assert frame["next_step"].startswith("sept export")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        show_pages([tmp_path / "nowhere"], port=0, tell=print)


def test_an_active_run_has_a_page_of_its_own_where_this_user_may_know(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=1)
    assert live_url(folder) == ""
    endpoints.write(folder, Endpoints(redis_url="redis://h:1", services_url="http://127.0.0.1:8123", token="hush"))
    assert live_url(folder) == "http://127.0.0.1:8123/"
    os.truncate(folder.endpoints, 0)
    assert live_url(folder) == ""
