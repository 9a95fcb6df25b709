"""The files of a model folder besides its weights: which belong to the model, and JSON read with its errors named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.contracts import FileName
from services.errors import ModelError
from services.weights.publisher import RESERVED_NAMES

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".npz",
    ".npy", ".pkl", ".pickle", ".tflite", ".ot", ".nemo", ".distcp", ".mlmodel", ".llamafile", ".index.json", ".tar",
    ".zip", ".incomplete",
)  # fmt: skip
"""Weights, optimizer states and their indices in every form that people store them in."""
NOT_DOWNLOADED = (
    *(f"*{suffix}" for suffix in WEIGHT_SUFFIXES if suffix not in (".safetensors", ".index.json")),
    "*.bin.index.json", "consolidated*", "original/*", "onnx/*", "checkpoint-*/*", ".git*",
)  # fmt: skip
"""Patterns of files on the hub that hold the weights a second time, or a training's state."""
ADAPTER_CONFIG = "adapter_config.json"
MAX_FILE_BYTES = 512 << 20
"""A file that is larger is no config and no tokenizer; every generator would fetch it."""

_FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)


def model_files(folder: Path) -> dict[str, Path]:
    """Name below the folder -> path of every file that belongs to the model and is not weights.

    config.json is passed on unchanged, its dtype included.
    """
    left_out = files_left_out(folder)
    return {name: path for name, path in _files(folder) if name not in left_out}


def files_left_out(folder: Path) -> dict[str, str]:
    """Name below the folder -> why a model made from this folder has no such file."""
    needs_code = any("auto_map" in read_json(folder / name) for name in ("config.json", "tokenizer_config.json"))
    found = list(_files(folder))
    with_weights = {name.partition("/")[0] for name, _ in found if "/" in name and _is_weights(name)}
    reasons = ((name, _reason(name, path, needs_code=needs_code, with_weights=with_weights)) for name, path in found)
    return {name: reason for name, reason in reasons if reason}


def _reason(name: str, path: Path, *, needs_code: bool, with_weights: set[str]) -> str:
    top, slash, _ = name.partition("/")
    if _is_weights(name):
        return "weights or state of training"
    if slash and top in with_weights:
        return f"{top}/ is another copy of the model"
    if name == ADAPTER_CONFIG:
        return "the adapters are part of the weights"
    if needs_code and name.endswith(".py"):
        return "code that runs only with trust_remote_code"
    if name in RESERVED_NAMES:
        return "a name of the weight store's own"
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES >> 20} MiB"
    try:
        _FILE_NAME.validate_python(name)
    except ValidationError:
        return "a name that cannot be sent"
    return ""


def _is_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHT_SUFFIXES) or bool(re.search(r"\.(tar|bin|pt|pth)\.\w+$", name.lower()))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file with its name below the folder; hidden ones, such as .git, are no part of a model."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, empty when there is no file; ModelError when there is something else in it."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not JSON: {type(error).__name__}: {error}", hint="copy or download the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not an object", hint="copy or download the model again"
        )
    return content
