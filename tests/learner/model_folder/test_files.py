"""Which files of a folder belong to the model besides its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.model_folder.files import files_left_out, model_files, read_json
from services.errors import ModelError

KEPT = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "LICENSE",
    "NOTICE (third parties).txt",
    "README.md",
    "handler.py",
    "_private.json",
)
LEFT_OUT = (
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "optimizer.pt",
    "training_args.bin",
    "rng_state_0.pth",
    "model.Q4_K_M.GGUF",
    "manifest.json",
    "adapter_config.json",
    "odd\nname.txt",
    "checkpoint-500/config.json",
    "checkpoint-500/model.safetensors",
)
HIDDEN = (".gitattributes", ".cache/huggingface/x.json", "__pycache__/a.json")


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


def test_everything_is_kept_but_weights_and_what_is_named_as_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, *KEPT, *LEFT_OUT, *HIDDEN)
    assert set(model_files(tmp_path)) == set(KEPT)
    assert all(path == tmp_path / name for name, path in model_files(tmp_path).items())
    left_out = files_left_out(tmp_path)
    assert set(left_out) == set(LEFT_OUT)
    assert all(left_out.values())


def test_code_stays_behind_where_it_would_need_trust(tmp_path: Path) -> None:
    folder_of(tmp_path, "modeling_x.py", "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_x.X"}}))
    assert set(model_files(tmp_path)) == {"config.json", "tokenizer.json"}
    assert "trust_remote_code" in files_left_out(tmp_path)["modeling_x.py"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000, b"1" * 5000])
def test_json_that_is_no_object_is_refused_by_its_file(tmp_path: Path, content: bytes) -> None:
    """A byte order mark too: transformers and vLLM do not read such a file."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.json") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.hint


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {}
