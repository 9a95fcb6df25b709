"""Where a model is on this machine, without going to the hub."""

from __future__ import annotations

import contextlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from learner.model_folder.check import weight_files
from services.errors import ModelError


def local_folder(path: str) -> Path | None:
    """The folder of that path, or of that Hugging Face id if all of its weights are in the cache; else None."""
    if not path:
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no name of a file at all
        folder = Path(path).expanduser()
        return folder if folder.is_dir() else _cached(path)
    return None


def _cached(model_id: str) -> Path | None:
    try:
        folder = Path(snapshot_download(model_id, local_files_only=True))
        return folder if all(file.is_file() for file in weight_files(folder)) else None
    except (HFValidationError, LocalEntryNotFoundError, OSError, ModelError):
        return None  # not there, or in part: it will be downloaded, and read then
