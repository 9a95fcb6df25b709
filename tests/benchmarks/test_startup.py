"""The startup benchmark with the scripted engine: a real run of one round."""

from __future__ import annotations

import json

import pytest

from benchmarks import startup


def test_it_times_the_command_and_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--engines", "scripted", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["help_s"] < 5
    parts = result["scripted"]
    assert parts.pop("engine_start_s") == 0, "it has no engine to load"
    assert all(seconds >= 0 for seconds in parts.values()), parts
    assert max(parts.values()) == parts["first_round_s"]
