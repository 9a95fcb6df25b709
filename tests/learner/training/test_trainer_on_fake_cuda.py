"""What an optimizer step needs on CUDA devices: memory, copies, waits. Measured without a GPU."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.support.fake_cuda.runs import measure_all, needs_compiler
from tests.support.fake_cuda.scenario import SHAPES, Measurement, Scenario

pytestmark = needs_compiler

GIB = 2**30
Mode = Literal["off", "light", "full"]

SCENARIOS = {
    "off": Scenario(model=SHAPES["0.5b"], gradient_checkpointing="off"),
    "light": Scenario(model=SHAPES["0.5b"], gradient_checkpointing="light"),
    "full": Scenario(model=SHAPES["0.5b"], gradient_checkpointing="full"),
    "4 ranks": Scenario(model=SHAPES["7b"], gradient_checkpointing="full", ranks=4),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Measurement]:
    return dict(zip(SCENARIOS, measure_all(list(SCENARIOS.values())), strict=True))


@pytest.mark.parametrize(("mode", "limit"), [("off", 36.5), ("light", 23.0), ("full", 13.0)])
def test_the_peak_follows_what_is_computed_again(measured: dict[str, Measurement], mode: Mode, limit: float) -> None:
    assert limit - 2 < measured[mode].peak_bytes / GIB < limit


def test_four_ranks_share_a_7b_model(measured: dict[str, Measurement]) -> None:
    assert measured["4 ranks"].peak_bytes / GIB < 50


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_step_waits_for_the_device_twice_and_not_once_more_for_each_micro_batch(
    measured: dict[str, Measurement], name: str
) -> None:
    assert measured[name].items == 2
    assert measured[name].micro_batches == 2


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_layer_computes_attention_in_one_call(measured: dict[str, Measurement], name: str) -> None:
    scenario = SCENARIOS[name]
    forwards = 2 if scenario.gradient_checkpointing == "full" else 1
    calls = forwards * scenario.micro_batches * scenario.model["num_hidden_layers"]
    assert measured[name].attention_calls == calls
