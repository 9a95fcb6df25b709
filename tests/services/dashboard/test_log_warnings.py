"""Warnings and errors are picked out of the parts' logs, whatever wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from services.dashboard.log_warnings import last_warnings
from services.run_folder import RunFolder


def test_last_words_have_the_time_of_the_line_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    folder.log_of("learner").write_text(
        "2026-01-02T03:04:05Z [info     ] trained\nsept: the disk is full\n\nhint: make room\n"
    )
    folder.log_of("supervisor").write_text(json.dumps({"time": 1.0, "event": "part_died", "part": "learner"}) + "\n")
    found = last_warnings(folder, 10)
    assert [(one.level, one.text) for one in found] == [
        ("error", "sept: the disk is full"),
        ("warning", "hint: make room"),
        ("warning", "part_died part=learner"),
    ]
    assert found[0].time_s == 1767323045.0


def test_a_line_ends_at_its_newline_only(tmp_path: Path) -> None:
    """Not at the other characters that Unicode breaks lines at, which answers may hold."""
    folder = RunFolder(tmp_path).create()
    event = {"time": 1.0, "event": "part_died", "reason": "said \u2028 and \x85"}
    folder.log_of("supervisor").write_text(json.dumps(event, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.text for one in last_warnings(folder, 10)] == ["part_died reason=said and"]


def test_without_logs_there_are_no_warnings(tmp_path: Path) -> None:
    assert last_warnings(RunFolder(tmp_path / "missing"), 10) == []
