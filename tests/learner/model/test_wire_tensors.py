"""Weights as they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.model.model_loading import load_model
from learner.model.wire_tensors import wire_changes, wire_tensors
from services.tensors import read_safetensors, write_safetensors
from tests.support import tiny_models

FAMILIES = ["qwen2", "llama"]


def rounded_to_bf16(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """Round to nearest, ties to even, on the bits."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_wire_names_are_the_checkpoints_with_tied_weights_once(tmp_path: Path, family: tiny_models.Family) -> None:
    model = tiny_models.load(tmp_path, tiny_models.config(family))
    names = wire_tensors(model).keys()
    assert names == read_safetensors(tmp_path / "model.safetensors").keys()
    assert ("lm_head.weight" in names) is (family == "llama")


def test_an_untrained_model_is_published_bit_for_bit_in_its_own_types(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, dtype=torch.bfloat16)
    stored = read_safetensors(folder / "model.safetensors")
    published = wire_tensors(load_model(str(folder), device="cpu"))
    for name, tensor in stored.items():
        assert (published[name].dtype, published[name].shape) == ("BF16", tensor.shape)
        assert published[name].data.tobytes() == tensor.data.tobytes()


def test_types_are_kept_tensor_by_tensor(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, dtype=torch.bfloat16)
    stored = read_safetensors(folder / "model.safetensors")
    exact = wire_tensors(load_model(str(folder), device="cpu", wire_dtype="float32"))
    write_safetensors(folder / "model.safetensors", stored | {"model.norm.weight": exact["model.norm.weight"]})
    published = wire_tensors(load_model(str(folder), device="cpu"))
    assert {name for name, tensor in published.items() if tensor.dtype == "F32"} == {"model.norm.weight"}


def test_weights_are_rounded_to_nearest_even(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path, wire_dtype="bfloat16")
    weight = model.module.get_parameter("model.norm.weight")
    # Below, at and above a tie; ties that go down and up; a carry into the exponent; the smallest numbers.
    values = [1.00390625, 1.01171875, 1.0039062, 1.0039064, -1.00390625, 1.9999999, 1e-40, -0.0]
    with torch.no_grad():
        weight[: len(values)] = torch.tensor(values)
    assert wire_tensors(model)["model.norm.weight"].data.tobytes() == rounded_to_bf16(weight.detach().numpy())


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16", "float16"])
def test_published_weights_stay_while_training_goes_on(tmp_path: Path, wire_dtype: str) -> None:
    model = tiny_models.load(tmp_path, wire_dtype=wire_dtype)
    published = wire_tensors(model)
    before = {name: tensor.data.tobytes() for name, tensor in published.items()}
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(1.0)
    assert {name: tensor.data.tobytes() for name, tensor in published.items()} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weights_load_as_a_model(tmp_path: Path, family: tiny_models.Family) -> None:
    model = tiny_models.load(tmp_path, tiny_models.config(family))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.5)
    write_safetensors(tmp_path / "model.safetensors", wire_tensors(model))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.module.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_changes_are_those_of_the_rounded_bits_since_the_last_publication(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path, wire_dtype="bfloat16")
    weight = model.module.get_parameter("model.layers.0.mlp.up_proj.weight")
    first = wire_tensors(model)
    with torch.no_grad():
        weight[0, 0] *= 1 + 2**-20  # too little for bf16
        weight[1, 3] *= -1
        weight[2, 5] = torch.inf
    for expected in ({"model.layers.0.mlp.up_proj.weight"}, set()):
        found = [flips for flips in wire_changes(model) if flips.positions.size]
        assert {flips.name for flips in found} == expected
        if found:
            width = weight.shape[1]
            assert found[0].positions.tolist() == [width + 3, 2 * width + 5]
            assert found[0].bits[0] == 0x8000, "the sign"
            bits = first[found[0].name].data.view("<u2").copy()
            bits[found[0].positions] ^= found[0].bits
            assert bits.view(np.uint8).tobytes() == rounded_to_bf16(weight.detach().numpy().reshape(-1))
    assert first.keys() == wire_tensors(model).keys()


def test_the_tied_weights_change_once(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path, tiny_models.config("qwen2"))
    names = wire_tensors(model).keys()
    assert sorted(flips.name for flips in wire_changes(model)) == sorted(names)
