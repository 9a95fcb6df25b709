"""Runs are found below folders and summed up; an address names them, and never a path."""

from __future__ import annotations

import json
from pathlib import Path

from services import durable
from services.dashboard.run_list import RunList, differences, key_of, search
from tests.support.recorded_run import record


def test_runs_are_found_in_and_below_the_folders_once(tmp_path: Path) -> None:
    one, other = record(tmp_path / "one", rounds=2).path, record(tmp_path / "study" / "sept-s0", rounds=2).path
    (tmp_path / "study" / "report.json").write_text('{"title": "t", "methods": {}}')
    (tmp_path / "link").symlink_to(one, target_is_directory=True)
    record(one / "evaluations" / "v000001", rounds=1)
    runs, reports = search([tmp_path, one])
    assert sorted(runs) == [one, other]
    assert reports == [tmp_path / "study" / "report.json"]
    assert search([other])[0] == [other]


def test_a_summary_says_how_far_how_good_and_what_differs(tmp_path: Path) -> None:
    first, second = record(tmp_path / "first", rounds=300), record(tmp_path / "second", rounds=10)
    durable.write_file(first.config, f'[run]\ndir = "{first.path}"\nseed = 0\n[training]\nbetas = [0.9, 0.95]\n')
    durable.write_file(second.config, f'[run]\ndir = "{second.path}"\nseed = 1\n[training]\nbetas = [0.9, 0.95]\n')
    runs = {Path(row.folder).name: row for row in RunList([tmp_path]).summaries()}
    one, other = runs["first"], runs["second"]
    assert (one.state, one.round, one.rounds_total, one.differing) == ("finished", 300, 300, {"run.seed": 0})
    assert one.best is not None
    assert (one.best.benchmark, one.best.temperature) == ("mean", 1.0)
    assert one.best.value > 0.6
    assert (other.state, other.best, other.differing) == ("stopped", None, {"run.seed": 1})


def test_settings_that_cannot_be_read_differ_in_nothing() -> None:
    assert differences({"a": {"x.y": 1, "x.z": 2}, "b": {"x.y": 1}, "damaged": {}}) == ["x.z"]
    assert differences({"damaged": {}}) == []


def test_a_key_is_plain_stable_and_of_one_folder(tmp_path: Path) -> None:
    keys = {key_of(tmp_path / name) for name in ("a run/../é", "run", "other", "x" * 200)}
    assert len(keys) == 4
    assert all(key.isascii() and "/" not in key and not key.startswith(".") and len(key) < 60 for key in keys)
    run = record(tmp_path / "run", rounds=1)
    found = RunList([tmp_path]).find(key_of(run.path))
    assert found is not None
    assert found.folder.path == run.path
    assert RunList([tmp_path]).find("../run") is None


def test_reports_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for name, text in {"good": '{"title": "t", "methods": {}}', "cut": '{"title"', "other": "[1]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    (report,) = RunList([tmp_path]).reports()
    assert report == {"folder": str(tmp_path / "good"), "title": "t", "methods": {}}
    assert json.dumps(report)
