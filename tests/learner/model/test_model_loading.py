"""Checkpoints and devices that a model can and cannot be loaded from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.model.model_loading import load_model, resolve_device
from services.errors import ConfigError, ModelError
from services.tensors import read_safetensors, write_safetensors
from tests.support import tiny_models


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
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_device("cuda")
