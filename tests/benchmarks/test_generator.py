"""The generator benchmark on its smallest scale: both contenders with the real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import generator
from services.run_folder import RunFolder


def test_tokens_of_the_warm_up_do_not_count(tmp_path: Path) -> None:
    """Two answers of ten tokens at once in a second each; the third is half done when the clock starts."""
    folder = RunFolder(tmp_path / "run").create()
    times = [(0.0, 1.0), (0.0, 2.0), (1.0, 2.0), (2.0, 2.0)]
    lines = [{"queued_s": at, "generate_s": took, "response_tokens": 10} for at, took in times]
    (folder.rollouts / "round-000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert generator.tokens_per_s(folder, warm_up=2) == pytest.approx((5 + 10) / 2)


@pytest.mark.vllm
@pytest.mark.slow
def test_both_contenders_answer_the_same_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "16", "--response-tokens", "8", "--in-flight", "8", "--hidden", "64", "--layers", "2"]
    generator.main([*sizes, "--repeats", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_per_s"] > 0 and result["bare_tokens_per_s"] > 0
    assert result["ratio_to_bare_vllm"] > 0
