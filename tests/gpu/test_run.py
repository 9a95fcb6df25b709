"""A whole run on one GPU, which learner and generator share with the default settings: needs vLLM."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROUNDS = 4


def test_learner_and_generator_share_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version reaches the engine under CUDA graphs, and is accepted by its canaries."""
    from benchmarks.runs import Run, base_settings, write_inputs

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    write_inputs(tmp_path, seed=0, prompts=64, hidden=256)
    settings = base_settings(tmp_path) | {
        "training.device": "cuda",
        "training.rounds": ROUNDS,
        "training.prompts_per_round": 16,
        "training.max_staleness": 0,
        "generator.engine": "vllm",
        "generator.count": 1,
    }
    finished = asyncio.run(Run(tmp_path / "run", settings).whole())
    rounds = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    assert [line["weight_version"] for line in rounds] == list(range(1, ROUNDS + 1))
    assert all(line["staleness_max"] == 0 for line in rounds), "each round was sampled by the version before it"
