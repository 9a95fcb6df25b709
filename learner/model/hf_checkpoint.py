"""A model's files in Hugging Face's layout: where they are, and what their headers and settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import safetensors
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from learner.model_folder.files import NOT_DOWNLOADED, read_json
from services.errors import ModelError

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
"""torch's names of floating types -> safetensors' names."""


def resolve_folder(path: str) -> Path:
    """The model's folder on this machine; a Hugging Face id is downloaded unless it is in the cache.

    Raises ModelError for a path that is neither, and for a folder without config.json.
    """
    if not path:
        raise ModelError("no model is named", hint="set model.path to a Hugging Face id or a folder")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = _download(path)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", hint="model.path must be a folder that save_pretrained wrote")
    return folder


def _download(model_id: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(model_id, ignore_patterns=list(NOT_DOWNLOADED)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{model_id} is neither a folder nor a model that can be downloaded: {error}",
            hint="check model.path; offline, download the model first and give its folder",
        ) from error


class StoredTensor(NamedTuple):
    """A tensor as the header of a checkpoint file describes it."""

    dtype: str
    """safetensors' name of its type."""
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by name, read from headers; empty when it is not stored as safetensors."""
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found |= {name: StoredTensor(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}", hint="copy or download the model again") from error
    return found


def config_dtype(folder: Path) -> str:
    """safetensors' name of the type that config.json declares for the weights; F32 when it declares none."""
    config = read_json(folder / "config.json")
    return SAFETENSORS_NAMES.get(str(config.get("dtype") or config.get("torch_dtype")), "F32")


def head_size(config: Any) -> int:
    """Size of an attention head. Most text configs of transformers give only hidden size and number of heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
