"""Rollouts are found by their text, newest round first, and a search goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from services.dashboard.rollout_search import RolloutSearch
from services.run_folder import RunFolder
from tests.support.recorded_run import KNOWN_QUESTION, record, rollout, write_rollouts


def test_nothing_recorded_is_nothing_found(tmp_path: Path) -> None:
    found = RolloutSearch(RunFolder(tmp_path / "missing")).search("x")
    assert (found.records, found.last_round, found.next_position) == ([], None, None)


def test_a_known_question_is_found_whatever_its_case(tmp_path: Path) -> None:
    found = RolloutSearch(record(tmp_path / "run")).search("WHAT IS $\\frac")
    assert [one.question for one in found.records] == [KNOWN_QUESTION]
    assert found.next_position is None


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    archive = RolloutSearch(record(tmp_path / "run", rounds=5))
    whole = archive.search(limit=100).records
    assert [one.round for one in whole] == sorted((one.round for one in whole), reverse=True)
    parts, start = [], None
    for _ in range(len(whole)):
        found = archive.search(limit=2, start=start)
        parts.extend(found.records)
        if found.next_position is None:
            break
        start = found.next_position
    assert parts == whole


def test_damaged_lines_hide_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write_rollouts(folder, 0, [rollout(0, 0, nll=float("nan")), {"rollout_id": "of another release"}, rollout(0, 1)])
    with (folder.rollouts_of(0)).open("ab") as file:
        file.write(b'\xff{"cut sh')
    (folder.rollouts / "notes.txt").write_text("not a round")
    found = RolloutSearch(folder).search()
    assert [(one.rollout_id, one.nll) for one in found.records] == [
        ("r000000-00000/0", None),
        ("r000000-00001/0", 0.41),
    ]


def test_fields_of_later_releases_are_passed_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write_rollouts(folder, 0, [rollout(0, 0, correct=True)])
    assert RolloutSearch(folder).search().records[0].model_dump()["correct"] is True


def test_staleness_is_counted_over_the_newest_round(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write_rollouts(folder, 0, [rollout(0, index) for index in range(9)])
    write_rollouts(folder, 1, [rollout(1, index) for index in range(5)])
    assert RolloutSearch(folder).staleness() == {0: 3, 1: 2}
