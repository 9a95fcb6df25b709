"""Rollouts are found by their text, newest round first, and a search goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.dashboard.rollout_search import RolloutFilter, RolloutSearch, SearchPosition
from services.run_folder import RunFolder
from tests.support.recorded_run import KNOWN_QUESTION, record, rollout, write_rollouts


def test_nothing_recorded_is_nothing_found(tmp_path: Path) -> None:
    found = RolloutSearch(RunFolder(tmp_path / "missing")).search(RolloutFilter(text="x"))
    assert (found.records, found.last_round, found.next_position) == ([], None, None)


def test_a_known_question_is_found_whatever_its_case(tmp_path: Path) -> None:
    found = RolloutSearch(record(tmp_path / "run")).search(RolloutFilter(text="WHAT IS $\\frac"))
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
        ("r000000-00000.0", None),
        ("r000000-00001.0", 0.41),
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


def graded(folder: RunFolder) -> RolloutSearch:
    """Three rounds of two groups with two answers each to the same two questions; only the newest is judged."""
    for round_ in range(3):
        judged = {"reward": 0.5 * round_, "vote": True, "class": 0} if round_ == 2 else {}
        lines = [
            rollout(
                round_, position, rollout_id=f"r{round_:06d}-{position:05d}.{sample}", sample=sample,
                question=f"question {position}", response_tokens=10 * round_ + 2 * position + sample,
                temperature=0.2 * round_, finish_reason="length" if sample else "stop", **judged,
                **({"correct": False} if round_ == 2 and sample else {}),
            )
            for position in range(2)
            for sample in range(2)
        ]  # fmt: skip
        write_rollouts(folder, round_, lines)
    return RolloutSearch(folder)


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (RolloutFilter(verdict="right"), ["r000002-00000.0", "r000002-00001.0"]),
        (RolloutFilter(verdict="wrong"), ["r000002-00000.1", "r000002-00001.1"]),
        (RolloutFilter(ended_by="length", text="question 1", max_tokens=13), ["r000001-00001.1", "r000000-00001.1"]),
        (RolloutFilter(min_tokens=23), ["r000002-00001.1"]),
        (RolloutFilter(min_reward=0.7, text="question 0"), ["r000002-00000.0", "r000002-00000.1"]),
        (RolloutFilter(max_reward=0.7), []),
        (RolloutFilter(temperature=0.2, ended_by="stop"), ["r000001-00000.0", "r000001-00001.0"]),
        (RolloutFilter(version=1, text="question 0"), [f"r00000{n}-00000.{k}" for n, k in ((1, 0), (1, 1))]),
        (RolloutFilter(like="r000001-00001.1"), ["r000001-00001.1"]),
        (RolloutFilter(like="r000001-00001.1", relation="group"), ["r000001-00001.0", "r000001-00001.1"]),
        (
            RolloutFilter(like="r000001-00000.1", relation="question", ended_by="stop"),
            ["r000002-00000.0", "r000001-00000.0", "r000000-00000.0"],
        ),
        (RolloutFilter(like="r000009-00000.1", relation="question"), []),
        (RolloutFilter(like="r000001-00009.1"), []),
    ],
)
def test_rollouts_are_found_by_what_became_of_them(tmp_path: Path, wanted: RolloutFilter, ids: list[str]) -> None:
    archive = graded(RunFolder(tmp_path / "run").create())
    found = archive.search(wanted)
    assert [one.rollout_id for one in found.records] == ids
    assert (found.first_round, found.last_round) == (0, 2)


def test_rollouts_are_ranked_over_all_rounds(tmp_path: Path) -> None:
    archive = graded(RunFolder(tmp_path / "run").create())
    lengths = [one.response_tokens for one in archive.search(order="shortest", limit=3).records]
    assert lengths == [0, 1, 2]
    assert [one.response_tokens for one in archive.search(order="longest", limit=2).records] == [23, 22]
    assert {one.round for one in archive.search(order="highest reward").records} == {2}, "the others have none"


def test_from_a_round_back_only_older_ones_are_ranked(tmp_path: Path) -> None:
    archive = graded(RunFolder(tmp_path / "run").create())
    found = archive.search(order="longest", start=SearchPosition(round=1, line=0), limit=1)
    assert [one.round for one in found.records] == [1]
