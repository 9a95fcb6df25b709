"""What a model folder's files say before anything is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from learner.model_folder.check import check_model_folder
from services.errors import ModelError
from tests.support import tiny_models
from tests.support.tokenizers import save_byte_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tiny_models.save(tmp_path_factory.mktemp("saved")))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_whole_folder_passes_without_torch_and_transformers(folder: Path) -> None:
    code = (
        "import sys, pathlib; from learner.model_folder.check import check_model_folder\n"
        f"check_model_folder(pathlib.Path({str(folder)!r}))\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5\n")
    with pytest.raises(ModelError, match=rf"{name} is a pointer of Git LFS") as caught:
        check_model_folder(folder)
    assert "git lfs pull" in caught.value.hint


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no vocabulary"):
        check_model_folder(folder)


def test_weights_that_were_cut_short_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    for length in (weights.stat().st_size - 100, 20, 0):
        weights.write_bytes(weights.read_bytes()[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
            check_model_folder(folder)


def test_the_index_decides_which_files_count(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    (folder / "stray.safetensors").write_bytes(b"not weights")
    check_model_folder(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors cannot be read"):
        check_model_folder(folder)
    for content in ("{}", "[]", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 1}}', "{"):
        index.write_text(content)
        with pytest.raises(ModelError, match=r"index\.json|cannot be read"):
            check_model_folder(folder)


def test_pickled_weights_are_refused_and_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor .* only pytorch_model\.bin") as caught:
        check_model_folder(folder)
    assert "runs what is in it" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{}", "names no model_type"),
        ("config.json", "{", "is not JSON"),
        ("generation_config.json", "nope", "is not JSON"),
        ("model.safetensors", None, "has neither model.safetensors nor"),
        ("tokenizer.json", "{}", "is no tokenizer"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_named(folder: Path, name: str, content: str | None, found: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ModelError, match=found) as caught:
        check_model_folder(folder)
    assert caught.value.hint
