"""The generator benchmark on its smallest scale: both contenders with the real engine."""

from __future__ import annotations

import json

import pytest

from benchmarks import generator


@pytest.mark.vllm
@pytest.mark.slow
def test_both_contenders_answer_the_same_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "16", "--response-tokens", "8", "--in-flight", "8", "--hidden", "64", "--layers", "2"]
    generator.main([*sizes, "--repeats", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_per_s"] > 0 and result["bare_tokens_per_s"] > 0
    assert result["ratio_to_bare_vllm"] > 0
