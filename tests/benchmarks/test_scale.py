"""The scale benchmark on its smallest scale: real parts, a few seconds."""

from __future__ import annotations

import json

import pytest

from benchmarks import scale


def test_it_measures_real_parts_and_names_what_saturates_first(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--generators", "2", "--generate-s", "0.2", "--train-s", "0.2", "--seconds", "4", "--model-mb", "1"]
    scale.main([*size, "--json"])
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert 0 < row["tasks_per_s"] <= 1.5 * row["offered_tasks_per_s"]
    assert row["pulls_per_s"] > 0 and row["redis_peak_mb"] > 0
    assert result["saturation"]["first"] in result["saturation"]["one_core_bears"]
