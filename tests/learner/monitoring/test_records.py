"""metrics.jsonl and rollouts/ have every round exactly once, whenever the learner was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.grading.signals import JudgedAnswer
from learner.monitoring.records import LostRecords, Records, summarise, summarise_votes
from services.contracts import VersionSpan
from services.run_folder import RunFolder
from tests.support.disk_order import disk_order
from tests.support.round_records import answers_of, metrics_of
from tests.support.tiny_models import rollout


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def rounds(folder: RunFolder) -> list[int]:
    return [metrics.round for metrics in folder.rounds()]


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.rollouts.iterdir())


def test_a_round_is_a_line_and_a_file(folder: RunFolder) -> None:
    Records(folder).write(metrics_of(0), answers_of(0))
    assert list(folder.rounds()) == [metrics_of(0)]
    (line,) = (folder.rollouts / "round-000000.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["question"], record["answer"], record["nll"]) == ("1+1=", "zwei", 0.25)
    assert (record["spans"], record["rollout_id"]) == ([[0, 0, 3]], "r000000-00000.0")


def test_a_round_in_the_metrics_has_its_answers_and_one_that_is_cut_back_loses_its_line_first(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the learner dies in between."""
    records = Records(folder)
    with disk_order(monkeypatch) as order:
        for round_ in range(2):
            records.write(metrics_of(round_), answers_of(round_))
        records.cut_back(1)
    assert order.finished() == []
    changed = [Path(path).name for verb, path in order.steps if not (verb == "fsync" and Path(path).is_dir())]
    seen = [name for name in changed if not name.startswith(".")]
    written = ["round-000000.jsonl", "metrics.jsonl", "round-000001.jsonl", "metrics.jsonl"]
    assert seen == [*written, "metrics.jsonl", "round-000001.jsonl"]


def test_what_is_done_again_is_cut_back(folder: RunFolder) -> None:
    records = Records(folder)
    for round_ in range(5):
        records.write(metrics_of(round_), answers_of(round_))
    Records(folder).cut_back(3)
    assert rounds(folder) == [0, 1, 2]
    assert files(folder) == [f"round-{round_:06d}.jsonl" for round_ in range(3)]
    for round_ in (3, 4):
        records.write(metrics_of(round_), answers_of(round_))
    assert rounds(folder) == [0, 1, 2, 3, 4]


def test_nothing_is_rewritten_where_nothing_has_to_be(folder: RunFolder) -> None:
    records = Records(folder)
    records.cut_back(0)
    assert not folder.metrics.exists()
    records.write(metrics_of(0), answers_of(0))
    before = folder.metrics.stat()
    records.cut_back(1)
    assert folder.metrics.stat().st_ino == before.st_ino


@pytest.mark.parametrize("torn", ['{"round": 1, "weight_ver', '{"round": 1}', "\0\0\0\0", "\udcff"])
def test_a_line_torn_by_a_crash_is_dropped(torn: str, folder: RunFolder) -> None:
    records = Records(folder)
    records.write(metrics_of(0), answers_of(0))
    with folder.metrics.open("ab") as file:
        file.write(torn.encode(errors="surrogateescape"))
    assert rounds(folder) == [0]
    records.write(metrics_of(1), answers_of(1))
    assert rounds(folder) == [0, 1]
    records.cut_back(1)
    assert folder.metrics.read_text() == metrics_of(0).as_line() + "\n"


def test_records_that_are_lost_are_named_and_what_is_left_of_them_is_kept(folder: RunFolder) -> None:
    records = Records(folder)
    for round_ in range(6):
        records.write(metrics_of(round_).model_copy(update={"rollouts": 1}), answers_of(round_))
    assert not records.lost(6)
    lines = folder.metrics.read_text().splitlines()
    lines[2] = lines[2].replace("loss", "lo55")
    folder.metrics.write_text("\n".join(lines) + "\n")
    folder.rollouts_of(1).write_text('{"round": 1')
    folder.rollouts_of(3).unlink()
    folder.rollouts_of(4).write_text("")
    records.cut_back(5)
    assert rounds(folder) == [0, 1, 3, 4]
    assert records.lost(5) == LostRecords(metrics=(2,), answers=(1, 3, 4))
    (damaged,) = folder.path.glob("metrics-damaged-*.jsonl")
    assert damaged.read_text().splitlines() == lines


def test_a_half_written_file_of_answers_is_removed(folder: RunFolder) -> None:
    (folder.rollouts / ".partial-x").write_text("half")
    Records(folder).cut_back(0)
    assert files(folder) == []


def test_the_summary_counts_and_averages() -> None:
    spanning = rollout(1, [1, 2, 3], [4, 5]).model_copy(
        update={
            "round": 2,
            "finish_reason": "length",
            "spans": (VersionSpan(weight_version=1, start=0, end=1), VersionSpan(weight_version=2, start=1, end=2)),
        }
    )
    summary = summarise([rollout(0, [1], [2, 3, 4, 5]), spanning])
    assert (summary.rollouts, summary.prompt_tokens, summary.response_tokens) == (2, 4, 6)
    assert (summary.response_length_mean, summary.truncated_ratio) == (3.0, 0.5)
    assert (summary.staleness_mean, summary.staleness_max, summary.spanning_rollouts) == (0.5, 1, 1)


def test_the_vote_share_is_that_of_the_largest_class_and_a_text_without_an_answer_agrees_with_nothing() -> None:
    classes: list[list[int | None]] = [[0, 0, 0, 1], [None, None, 0, 1], [None] * 4]
    rollouts = [rollout(position, [1], [2], sample) for position in range(3) for sample in range(4)]
    judged = [JudgedAnswer(None, class_, False) for group in classes for class_ in group]
    summary = summarise_votes(rollouts, judged)
    assert summary.vote_share == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert summary.distinct_answers == pytest.approx((2 + 2 + 0) / 3)
