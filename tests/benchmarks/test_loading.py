"""A rank that loads a model needs memory for its rows and little else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loading import SLACK, make_model, report


@pytest.mark.slow
def test_a_rank_needs_its_share_the_largest_tensor_and_its_libraries(tmp_path: Path) -> None:
    make_model(tmp_path / "model", 300_000_000)
    results = report(tmp_path / "model", 4)
    assert [rank["ratio"] <= SLACK for rank in results["ranks"]] == [True] * 4, results
    assert all(rank["peak_bytes"] < results["from_pretrained"]["peak_bytes"] for rank in results["ranks"])
