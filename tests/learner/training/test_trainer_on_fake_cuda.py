"""What an optimizer step needs on CUDA devices: memory, copies, waits, traffic. Measured without a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_cuda.runs import measure_all, needs_compiler
from tests.support.fake_cuda.scenario import SHAPES, Measurement, Scenario

pytestmark = [needs_compiler, pytest.mark.timeout(900)]

GIB = 2**30
SMALL: dict[str, Any] = {"model": SHAPES["0.5b"]}
LARGE: dict[str, Any] = {"model": SHAPES["7b"], "gradient_checkpointing": "full"}
SHALLOW: dict[str, Any] = {"model": SHAPES["7b"] | {"num_hidden_layers": 2}, "gradient_checkpointing": "full"}

SCENARIOS = {
    "off": Scenario(**SMALL),
    "light": Scenario(**SMALL, gradient_checkpointing="light"),
    "full": Scenario(**SMALL, gradient_checkpointing="full"),
    "entropy": Scenario(**SHALLOW, algorithm="entropy"),
    "grpo": Scenario(**SHALLOW, algorithm="grpo"),
    "moments in host memory": Scenario(**SHALLOW, training={"optimizer_offload": True}),
    "lora": Scenario(**LARGE, lora_rank=16, micro_batches=1),
    "4 ranks": Scenario(**LARGE, ranks=4),
    "8 ranks": Scenario(**LARGE, ranks=8, micro_batches=1),
}
MOST_GIB = {"off": 31, "light": 22, "full": 12, "lora": 25, "4 ranks": 42, "8 ranks": 25}
"""Of a rank at any time."""
AUTOCAST_GB = 3689
"""What `moved_bytes` of "4 ranks" was with autocast over float32 copies and transformers' own norms."""


@pytest.fixture(scope="module")
def measured() -> dict[str, Measurement]:
    return dict(zip(SCENARIOS, measure_all(list(SCENARIOS.values())), strict=True))


@pytest.mark.parametrize("name", MOST_GIB)
def test_a_step_keeps_to_its_memory(measured: dict[str, Measurement], name: str) -> None:
    peak = measured[name].peak_bytes / GIB
    assert 0.7 * MOST_GIB[name] < peak < MOST_GIB[name]


def test_weights_and_moments_are_shared_by_the_ranks_in_float32(measured: dict[str, Measurement]) -> None:
    four = measured["4 ranks"]
    assert four.weights_bytes == pytest.approx(4 * four.parameters / 4, rel=1e-3)
    assert four.state_bytes == pytest.approx(12 * four.parameters / 4, rel=1e-3)
    assert four.gradients_bytes == pytest.approx(4 * four.parameters / 4, rel=1e-2)


def test_frozen_weights_take_two_bytes(measured: dict[str, Measurement]) -> None:
    lora = measured["lora"]
    assert lora.weights_bytes == pytest.approx(2 * lora.parameters, rel=0.03)


def test_offloaded_moments_are_not_on_the_device(measured: dict[str, Measurement]) -> None:
    offloaded = measured["moments in host memory"]
    assert offloaded.state_bytes == pytest.approx(offloaded.weights_bytes, rel=1e-3)
    slots = 3 * 2 * 4 * 2**25
    assert offloaded.update_peak_bytes <= 2 * offloaded.weights_bytes + slots + GIB


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_host_waits_twice_a_step_and_never_for_a_micro_batch(measured: dict[str, Measurement], name: str) -> None:
    """For the loss and for the gradient's norm."""
    assert measured[name].items == 2
    assert measured[name].micro_batches == SCENARIOS[name].micro_batches


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_micro_batch_is_five_copies_and_its_signals_one_more(measured: dict[str, Measurement], name: str) -> None:
    offloaded = "optimizer_offload" in SCENARIOS[name].training
    copies = 5 + (SCENARIOS[name].algorithm == "grpo")
    assert measured[name].host_to_device == copies * SCENARIOS[name].micro_batches
    assert offloaded or measured[name].device_to_host <= 2 * SCENARIOS[name].micro_batches


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_layer_computes_attention_in_one_call(measured: dict[str, Measurement], name: str) -> None:
    scenario = SCENARIOS[name]
    forwards = 1 + (scenario.gradient_checkpointing == "full") + (scenario.algorithm == "grpo")
    calls = forwards * scenario.micro_batches * scenario.model["num_hidden_layers"]
    assert measured[name].attention_calls == calls


def test_bytes_moved_by_other_than_products_are_less_than_half_of_what_autocast_moved(
    measured: dict[str, Measurement],
) -> None:
    assert measured["4 ranks"].moved_bytes / 1e9 < AUTOCAST_GB / 2
