"""Writes a published version as a model folder that transformers and vLLM load; no part has to run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from services import durable
from services.contracts import FileKind
from services.errors import SeptError, UnavailableError, VersionNotFoundError
from services.run_folder import RunFolder, version_name
from services.tensors import write_safetensors
from services.weights.reader import WeightReader

log = structlog.get_logger()

KEPT_FREE_BYTES = 1 << 30
"""What an export leaves on its disk."""

WEIGHTS_NAME = "model.safetensors"


def export_version(folder: RunFolder, out: Path, weight_version: int | None = None) -> int:
    """Write the version (the newest when None) with config and tokenizer to `out`; returns which it was.

    The folder appears whole or not at all. Raises VersionNotFoundError for a version that the run does not hold,
    UnavailableError when `out` is there already, or its disk has no room for it.
    """
    if out.exists():
        raise UnavailableError(f"{out} exists already", hint="name a folder that does not exist yet")
    store = WeightReader(folder.weights, folder.run_id)
    held = store.versions()
    if not held:
        raise VersionNotFoundError(f"{folder.weights} holds no version yet", hint="wait for the learner's first one")
    version = held[-1] if weight_version is None else weight_version
    if version not in held:
        raise VersionNotFoundError(f"version {version} is not in {folder.weights}", hint=f"it holds {in_ranges(held)}")
    _expect_space(out, store.manifest(version).full_bytes)
    tensors = store.load(version)
    with durable.new_folder(out) as partial:
        for entry in store.manifest(0).files:
            if entry.kind is FileKind.MODEL:
                (partial / entry.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store.file_path(0, entry.name), partial / entry.name)
        write_safetensors(partial / WEIGHTS_NAME, tensors)
    log.info("exported", weight_version=version, folder=str(out))
    return version


def keep_best(folder: RunFolder, weight_version: int) -> None:
    """Write the version to the run's best/, in place of the one that was best before.

    Where that fails the log says why: the run goes on.
    """
    out = folder.best / version_name(weight_version)
    try:
        if not out.exists():
            export_version(folder, out, weight_version)
    except (SeptError, OSError) as error:
        log.warning("best_version_not_kept", weight_version=weight_version, reason=str(error))
        return
    for older in folder.best.iterdir():
        if older != out:
            shutil.rmtree(older)


def in_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, shortly: 0, 10, 33 to 36."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)


def _expect_space(out: Path, needed_bytes: int) -> None:
    """An export may be asked for at any time, and must not take the disk from the run that trains on it."""
    place = next(parent for parent in out.resolve().parents if parent.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes - needed_bytes < KEPT_FREE_BYTES:
        raise UnavailableError(
            f"the export takes {needed_bytes / 1e9:.2f} GB and must leave {KEPT_FREE_BYTES / 1e9:.2f} GB free at "
            f"{place}, which has {free_bytes / 1e9:.2f} GB",
            hint="free some space there, or export to another disk",
        )
