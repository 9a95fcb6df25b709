"""Loading a model for training, and its weights on the wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.packing import Sequence, lay_out
from learner.model.trained_model import load_model, resolve_device, wire_tensors
from services.errors import ConfigError, ModelError
from services.weights.tensors import read_safetensors, write_safetensors
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


def test_master_weights_are_float32_and_train_without_dropout(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, tiny_models.config(attention_dropout=0.5), dtype=torch.bfloat16)
    model = load_model(str(folder), device="cpu")
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert model.module.training
    batch = lay_out([Sequence(np.arange(4, dtype=np.int32), np.arange(9, dtype=np.int32))])
    first, second = (model.losses(batch, nll, Targets(batch.targets), 1.0).loss.item() for _ in range(2))
    assert first == second


def test_a_model_whose_logits_are_scaled_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, GraniteConfig(**(tiny_models.SHAPE | {"logits_scaling": 2.0})))
    with pytest.raises(ModelError, match="differ from its own"):
        load_model(str(folder), device="cpu")


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    stored = read_safetensors(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", {n: t for n, t in stored.items() if n != "model.norm.weight"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, among them model\.norm\.weight"):
        load_model(str(folder), device="cpu")


def test_a_folder_that_holds_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(str(tmp_path), device="cpu")
    assert caught.value.hint


def test_devices_are_resolved_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "meta"])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_device("cuda")
