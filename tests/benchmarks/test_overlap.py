"""The overlap benchmark: its sums on made-up runs, and itself with the scripted engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import overlap, runs
from services.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def record(folder: RunFolder, finished_s: list[float]) -> None:
    """Rollouts of ten tokens that were all issued at once, leased two seconds later, and finished then."""
    lines = [{"queued_s": 2.0, "generate_s": at_s - 2.0, "response_tokens": 10} for at_s in finished_s]
    (folder.rollouts / "round-000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_completions_count_from_the_first_lease(folder: RunFolder) -> None:
    record(folder, [9.0, 4.0, 6.5])
    assert runs.completions(folder) == [(2.0, 10), (4.5, 10), (7.0, 10)]


def test_the_generators_speed_leaves_out_its_first_and_last_moments(folder: RunFolder) -> None:
    """Four a second, after a slow start and before a straggler."""
    record(folder, [3.0, 40.0] + [50.0 + 0.25 * n for n in range(97)] + [500.0])
    assert overlap.generators_alone_per_s(folder) == pytest.approx(4.0)


def test_shares_are_of_the_time_since_the_start() -> None:
    assert overlap.started_shares({"starting": 0.5, "training": 0.4, "publishing": 0.1}) == {
        "training": 0.8,
        "publishing": 0.2,
    }


@pytest.mark.slow
def test_it_runs_both_sides_apart_together_and_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    overlap.main(
        [
            "--engine",
            "scripted",
            "--rounds",
            "10",
            "--prompts-per-round",
            "8",
            "--in-flight",
            "8",
            "--repeats",
            "1",
            "--json",
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert 0.2 < result["overlap_efficiency"] < 1.5
    assert result["speedup_vs_sync"] > 1
    assert result["staleness_max"] <= overlap.MOST_STALE
    for part in ("learner", "generator-0"):
        assert sum(result["shares"][part].values()) == pytest.approx(1, abs=0.01)
