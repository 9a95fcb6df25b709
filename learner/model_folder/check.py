"""Checks a model folder before a run: every file that can be read without loading weights, torch or transformers."""

from __future__ import annotations

from pathlib import Path

import safetensors

from learner.model_folder.files import read_json
from learner.model_folder.tokenizer import check_tokenizer_files
from services.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "copy or download the model again"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git left in the place of a large one."""


def check_model_folder(folder: Path) -> None:
    """ModelError names the file that is missing, cut short or not what its name says."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", hint="model.path must be a folder that save_pretrained wrote")
    _check_pointers(folder)
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'} names no model_type", hint=AGAIN)
    read_json(folder / "generation_config.json")
    for path in weight_files(folder):
        _check_header(path)
    check_tokenizer_files(folder)


def _check_pointers(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise ModelError(
                    f"{path} is a pointer of Git LFS, not the file itself", hint="run `git lfs pull` in the repository"
                )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those that the index lists. Others in the folder do not count."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = next((path.name for path in folder.glob("*.bin")), None)
        raise ModelError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}" + (f", only {pickled}" if pickled else ""),
            hint="load the model where you trust its source, as reading a .bin runs what is in it, and save it with "
            "save_pretrained"
            if pickled
            else "save the model with save_pretrained",
        )
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(Path(str(file)).name == file for file in files.values()):
        raise ModelError(f"{index} does not map tensors to files of its folder", hint=AGAIN)
    return [folder / name for name in sorted(set(files.values()))]


def _check_header(path: Path) -> None:
    try:
        with safetensors.safe_open(path, framework="numpy"):  # reads the header, and compares it with the file's size
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}", hint=AGAIN) from error
