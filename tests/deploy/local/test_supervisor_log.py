"""The supervisor's log tells people, the file and flight records the same, and never ends a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from deploy.local.supervisor_log import REMEMBERED, SupervisorLog


def test_an_event_is_shown_written_and_remembered(tmp_path: Path) -> None:
    shown: list[str] = []
    log = SupervisorLog(tmp_path / "log", shown.append)
    before = time.time()
    log.record("part_died", part="generator-1", exit_code=-9)
    log.record("stopping")
    assert shown == ["part_died part=generator-1 exit_code=-9", "stopping "]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == log.last_events
    assert [line["event"] for line in lines] == ["part_died", "stopping"]
    assert (lines[0]["part"], lines[0]["exit_code"]) == ("generator-1", -9)
    assert before - 0.001 <= lines[0]["time"] <= time.time() + 0.001


def test_only_the_last_events_are_remembered_and_what_cannot_be_written_is(tmp_path: Path) -> None:
    shown: list[str] = []
    log = SupervisorLog(tmp_path, shown.append)  # a folder: nothing can be appended to it
    for number in range(REMEMBERED + 2):
        log.record("event", number=number)
    assert [event["number"] for event in log.last_events] == list(range(2, REMEMBERED + 2))
    assert len(shown) == REMEMBERED + 2
