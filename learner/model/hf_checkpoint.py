"""A model's files in Hugging Face's layout: where they are, and what their headers and settings say."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from learner.model_folder.files import NOT_DOWNLOADED, read_json
from learner.parallel.file_tensors import FileTensor
from services.errors import ModelError, WeightError
from services.tensors import read_header

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


def stored_tensors(folder: Path) -> dict[str, FileTensor]:
    """The checkpoint's tensors by name, none of them read yet.

    As transformers chooses: those of model.safetensors; without that file those that model.safetensors.index.json
    lists. Other files in the folder do not count: many repositories hold the weights a second time in another layout.
    Raises ModelError when a file is missing, truncated or not safetensors.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return _tensors_in(single)
    if not index.is_file():
        raise ModelError(
            f"{folder} has neither {single.name} nor {index.name}", hint="save the model with save_pretrained"
        )
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(Path(str(file)).name == file for file in files.values()):
        raise ModelError(f"{index} does not map tensors to files beside it", hint="copy or download the model again")
    tensors = {file: _tensors_in(folder / file) for file in sorted(set(files.values()))}
    for name, file in files.items():
        if name not in tensors[file]:
            raise ModelError(
                f"{folder / file} lacks {name}, which {index.name} places there",
                hint="copy or download the model again",
            )
    return {name: tensors[file][name] for name, file in files.items()}


def _tensors_in(path: Path) -> dict[str, FileTensor]:
    try:
        return {name: FileTensor(path, place) for name, place in read_header(path).places.items()}
    except (WeightError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="copy or download the model again") from error


def config_dtype(folder: Path) -> str:
    """safetensors' name of the type that config.json declares for the weights; F32 when it declares none."""
    config = read_json(folder / "config.json")
    return SAFETENSORS_NAMES.get(str(config.get("dtype") or config.get("torch_dtype")), "F32")


def vocabulary_of(folder: Path) -> int | None:
    """Rows of the model's embedding, as config.json says: every token id is below it. None where it does not say."""
    config = read_json(folder / "config.json")
    size = (config.get("text_config") or config).get("vocab_size")
    return size if isinstance(size, int) else None
