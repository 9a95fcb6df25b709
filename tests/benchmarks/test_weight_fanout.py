"""The fan-out benchmark on its smallest scale: real servers, a second."""

from __future__ import annotations

import json

import pytest

from benchmarks import weight_fanout


def test_every_puller_gets_the_delta_from_the_endpoint_and_its_peer(capsys: pytest.CaptureFixture[str]) -> None:
    relay = ["--relay"] if weight_fanout.NGINX else []
    weight_fanout.main(["--pullers", "20", "--parameters", "14_000_000", "--json", *relay])
    result = json.loads(capsys.readouterr().out)
    assert result["errors"] == 0, result["first_errors"]
    assert result["bytes_per_s"] > 0 and result["peer_bytes_per_s"] > 0
    assert 0 < result["p50_s"] <= result["p99_s"]
