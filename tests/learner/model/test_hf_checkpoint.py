"""What the learner reads from a model's folder besides its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from learner.model import hf_checkpoint
from services.errors import ModelError
from tests.support import tiny_models


def test_model_files_are_all_but_the_weights(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    files = hf_checkpoint.model_files(tmp_path)
    assert files == {name: tmp_path / name for name in ("config.json", "generation_config.json")}


def test_stop_tokens_join_generation_settings_and_tokenizer(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "<end>": 5}
    words = Tokenizer(WordLevel(vocabulary, "a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 3]}))
    assert hf_checkpoint.stop_token_ids(tmp_path) == (3, 5, 9)


def test_stop_tokens_come_from_the_config_where_there_are_no_generation_settings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert hf_checkpoint.stop_token_ids(tmp_path) == (7,)


def test_a_model_may_have_no_stop_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert hf_checkpoint.stop_token_ids(tmp_path) == ()


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
