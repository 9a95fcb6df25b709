"""The benchmark of utilisation does whole rounds and counts what they take; a CPU stands in for the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learner_mfu import MAX_TOKENS, SHAPES, measure, peak_tflops, rounds_of, write_model
from services.errors import ConfigError
from tests.support import tiny_models


def test_the_rounds_of_a_small_model_are_measured(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_models.SHAPE | {"max_position_embeddings": 2 * MAX_TOKENS})
    config = tiny_models.training(prompts_per_round=2, steps_per_round=1, micro_batch_tokens=8192)
    found = measure(tmp_path, config, peak=1.0, rounds=2)
    assert found["mfu"] == pytest.approx(found["tflops"])
    assert 0 < found["mfu"] < 1
    assert found["tokens_per_s"] > 0


def test_the_same_sequences_are_measured_every_time() -> None:
    first, second = (rounds_of(100, 2, 3) for _ in range(2))
    assert [[r.response_tokens.tolist() for r in round_] for round_ in first] == [
        [r.response_tokens.tolist() for r in round_] for round_ in second
    ]


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA L40S", 362)]
)
def test_the_peak_is_the_devices(name: str, peak: float) -> None:
    assert peak_tflops(name) == peak


def test_a_device_that_is_not_listed_must_be_given_its_peak() -> None:
    with pytest.raises(ConfigError, match="not known"):
        peak_tflops("a toy")


def test_the_shapes_are_those_of_qwen() -> None:
    """Weights by hand: the tied embedding, and per layer q, k, v, o and three of the MLP; norms and biases left out."""
    for name, billions in (("0.5b", 0.494), ("1.5b", 1.54)):
        shape = SHAPES[name]
        hidden, head = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
        attention = 2 * hidden * hidden + 2 * hidden * head * shape["num_key_value_heads"]
        layer = attention + 3 * hidden * shape["intermediate_size"]
        weights = shape["vocab_size"] * hidden + shape["num_hidden_layers"] * layer
        assert weights / 1e9 == pytest.approx(billions, rel=0.01)
