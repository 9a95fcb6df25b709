"""The benchmark of long polls on its smallest scale: a real endpoint, and clients that never read."""

from __future__ import annotations

import json

import pytest

from benchmarks import long_polls


def test_every_poller_gets_the_version_beside_clients_that_take_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long_polls.main(["--pollers", "40", "--stalled", "3", "--parameters", "100000", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["errors"], result["first_errors"]) == (0, [])
    assert result["answer_bytes"] > 500
    assert result["cpu_ms_each"] > 0 and result["health_max_ms"] > 0
