"""What the learner reads from a model's folder besides its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.model import hf_checkpoint
from services.errors import ModelError
from tests.support import tiny_models


def test_types_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in hf_checkpoint.stored_tensors(tmp_path).values()} == {"BF16"}
    assert hf_checkpoint.config_dtype(tmp_path) == "BF16"


@pytest.mark.parametrize(
    ("path", "message"), [("", "no model is named"), ("a/b/c/d", "neither a folder nor a model"), (".", "config.json")]
)
def test_a_path_that_is_no_model_is_refused(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        hf_checkpoint.resolve_folder(str(tmp_path) if path == "." else path)
    assert caught.value.hint


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        hf_checkpoint.stored_tensors(tmp_path)
