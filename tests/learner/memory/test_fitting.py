"""What makes a learner fit: recomputation that follows the device, and the smallest change of settings."""

from __future__ import annotations

from typing import Any

import pytest

from learner.config import LearnerSettings, TrainingConfig
from learner.memory.fitting import Room, check_fits, estimate, fits, recomputation_of, smallest_change, with_training
from learner.memory.model_shape import ModelShape, shape_of_config
from services.errors import ConfigError
from tests.support.model_configs import CONFIGS

GIB = 1 << 30


def shape(name: str) -> ModelShape:
    found = shape_of_config(CONFIGS[name])
    assert found is not None
    return found


def settings(**training: Any) -> LearnerSettings:
    return LearnerSettings(training=TrainingConfig(**training))


def gpu(gib: float, devices: int = 1) -> Room:
    return Room("cuda", int(gib * GIB), devices=devices)


def test_recomputation_is_chosen_by_memory() -> None:
    chosen = [recomputation_of(shape("Qwen2.5-0.5B"), settings(), gpu(gib)) for gib in (140, 26, 15)]
    assert chosen == ["off", "light", "full"]
    assert recomputation_of(shape("Qwen2.5-0.5B"), settings(gradient_checkpointing="full"), gpu(140)) == "full"


def test_what_fits_is_not_refused() -> None:
    check_fits(shape("Qwen2.5-0.5B"), settings(), gpu(80))


def test_what_cannot_fit_is_refused_with_numbers_and_with_what_would_fit() -> None:
    model, chosen = shape("Qwen2.5-Math-7B"), settings()
    with pytest.raises(
        ConfigError, match=r"the learner needs 1\d\d\.\d GiB of GPU memory, and there are 80\.0"
    ) as caught:
        check_fits(model, chosen, gpu(80, devices=8))
    assert "moments 56.7" in caught.value.message
    assert str(caught.value.hint).startswith("this would fit: training.ranks = ")
    change = smallest_change(model, chosen, gpu(80, devices=8))
    assert list(change) == ["training.ranks"]
    fewer = with_training(chosen, {"ranks": change["training.ranks"] - 1})
    assert not fits(model, fewer, gpu(80, devices=8))


@pytest.mark.parametrize(
    ("training", "room", "expected"),
    [
        ({"gradient_checkpointing": "off"}, gpu(26), {"training.gradient_checkpointing": "light"}),
        ({"gradient_checkpointing": "off"}, gpu(15), {"training.gradient_checkpointing": "full"}),
        ({"gradient_checkpointing": "full"}, gpu(13.3), {"training.micro_batch_tokens": 8192}),
        ({"gradient_checkpointing": "full"}, gpu(11), {"training.optimizer_offload": True}),
    ],
)
def test_the_change_that_costs_least_is_named(training: dict[str, Any], room: Room, expected: dict[str, Any]) -> None:
    assert smallest_change(shape("Qwen2.5-0.5B"), settings(**training), room) == expected


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Qwen2.5-Math-7B", "Qwen2.5-32B"])
@pytest.mark.parametrize("gib", [8, 16, 24, 40, 80, 141])
@pytest.mark.parametrize("devices", [1, 4, 8, 16])
def test_what_is_named_fits_and_nothing_is_named_in_vain(name: str, gib: int, devices: int) -> None:
    model, chosen, room = shape(name), settings(gradient_checkpointing="off"), gpu(gib, devices)
    change = smallest_change(model, chosen, room)
    if change:
        training = {key.removeprefix("training."): value for key, value in change.items()}
        assert fits(model, with_training(chosen, training), room)
    else:
        most = {"gradient_checkpointing": "full", "ranks": devices, "micro_batch_tokens": 4096}
        assert fits(model, chosen, room) or not fits(model, with_training(chosen, most), room)


def test_when_nothing_helps_adapters_and_smaller_models_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        check_fits(shape("Qwen2.5-32B"), settings(), gpu(24))
    assert "lora.rank" in str(caught.value.hint)


def test_a_remedy_is_written_as_settings_are() -> None:
    with pytest.raises(ConfigError) as caught:
        check_fits(shape("Qwen2.5-Math-7B"), settings(), gpu(90))
    assert caught.value.hint == "this would fit: training.optimizer_offload = true"


def test_on_cpu_ranks_share_one_memory() -> None:
    model = shape("Qwen2.5-0.5B")
    assert fits(model, settings(ranks=1, micro_batch_tokens=4096), Room("cpu", 24 * GIB))
    assert not fits(model, settings(ranks=4, micro_batch_tokens=4096), Room("cpu", 12 * GIB))
    assert "training.ranks" not in smallest_change(model, settings(gradient_checkpointing="off"), Room("cpu", 16 * GIB))
    few = settings(gradient_checkpointing="full", micro_batch_tokens=4096)
    assert "training.optimizer_offload" not in smallest_change(model, few, Room("cpu", 10 * GIB))


def test_more_of_anything_never_needs_less() -> None:
    model = shape("Qwen2.5-Math-1.5B")
    totals = [estimate(model, settings(micro_batch_tokens=t), gpu(500)).total for t in (4096, 8192, 16_384)]
    assert totals == sorted(totals)
    by_ranks = [estimate(model, settings(ranks=r, gradient_checkpointing="full"), gpu(500)).total for r in (2, 4, 8)]
    assert by_ranks == sorted(by_ranks, reverse=True)
