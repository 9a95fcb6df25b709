"""Whole processes, killed: a few kills of the chaos benchmark, which takes minutes for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import chaos, passed
from benchmarks.runs import SUPERVISOR

PARTS = ("redis", "generator-0", SUPERVISOR)  # with the supervisor everything dies, the learner too


@pytest.mark.timeout(600)
async def test_a_run_whose_parts_are_killed_becomes_the_run_it_would_have_been(tmp_path: Path) -> None:
    said: list[str] = []
    result = await chaos(tmp_path, kills=len(PARTS), seed=3, parts=PARTS, rounds=6, say=said.append)
    assert passed(result), f"{result}\n" + "\n".join(said)
    assert result["bit_identical"] is True
    assert set(result["killed"]) == set(PARTS)
    log = (tmp_path / "disturbed" / "logs" / "learner.log").read_text()
    assert "resuming" in log or "rollouts_found" in log, "it says from where it goes on"
