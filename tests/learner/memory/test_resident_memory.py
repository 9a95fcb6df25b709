"""The estimate against the resident memory of a real learner on CPU, in a run with scripted generators."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.load_settings import load
from learner.memory.model_shape import read_shape
from learner.memory.rank_memory import estimate_rank
from services.run_folder import RunFolder
from tests.support import scripted_run

TOLERANCE = 0.15
TOKENS = 1024
DEADLINE_S = 400.0
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}


async def peaks(config: Path, rounds: int, mode: str) -> list[int]:
    """The learner's peak in each round of the run in the config's folder, up to this many rounds."""
    sets = (
        f"training.rounds={rounds}",
        f"training.gradient_checkpointing={mode}",
        f"training.micro_batch_tokens={TOKENS}",
        "training.learning_rate=1e-6",  # as of real runs: at a higher one nearly all weights change, and are encoded
        "services.port=0",
    )
    words = [word for text in sets for word in ("--set", text)]
    process = await scripted_run.sept("run", config, *words, environ={"OMP_NUM_THREADS": "1"})
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    return [metrics.peak_memory_bytes or 0 for metrics in RunFolder(config.parent / "run").rounds()]


@pytest.mark.slow
@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("mode", ["off", "light", "full"])
async def test_on_cpu_the_estimate_is_what_a_learner_takes_and_resuming_takes_no_more(
    tmp_path: Path, mode: str
) -> None:
    config = scripted_run.write(tmp_path, prompts_per_round=20, response_tokens=250, shape=SHAPE)
    trained = max(await peaks(config, 2, mode))
    settings, shape = (
        load(config, [f"training.micro_batch_tokens={TOKENS}"], environ={}),
        read_shape(tmp_path / "model"),
    )
    assert shape is not None
    estimate = estimate_rank(shape, settings, device="cpu", recomputation=mode)  # type: ignore[arg-type]
    assert estimate.total == pytest.approx(trained, rel=TOLERANCE), estimate
    resumed = await peaks(config, 3, mode)
    assert len(resumed) == 3
    assert resumed[-1] <= trained * 1.02, "a round after loading a checkpoint, the loading included"
