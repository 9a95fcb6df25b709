"""What the learner resumes from: tensors as safetensors, the rest as JSON, written whole or not at all.

    checkpoints/v000012/state.safetensors    master weights, optimizer moments, step count
    checkpoints/v000012/meta.json            run, version, and the digest of the state file

Knows neither the model nor the optimizer: it keeps named tensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import structlog
import torch

from services import durable
from services.errors import CheckpointError
from services.weights.tensors import digest_file

log = structlog.get_logger()

STATE = "state.safetensors"
META = "meta.json"
UNUSABLE = (OSError, ValueError, KeyError, TypeError, CheckpointError, safetensors.SafetensorError)
"""What reading a checkpoint raises whose files are gone or not what was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The learner after `weight_version` rounds."""

    run_id: str
    weight_version: int
    tensors: dict[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of one run, newest kept longest."""

    def __init__(self, folder: Path, run_id: str, *, keep: int) -> None:
        self._folder = folder
        self._run_id = run_id
        self._keep = keep
        durable.clear_partial(folder)

    def save(
        self,
        weight_version: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        before_commit: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write a checkpoint durably, then drop those beyond `keep`.

        `before_commit` runs when the bytes are written and before the checkpoint counts: what it does is done again
        should the learner die in between.
        """
        final = self._folder / _folder_name(weight_version)
        with durable.new_folder(final) as folder:
            _write_state(tensors, folder / STATE)
            meta = {
                "run_id": self._run_id,
                "weight_version": weight_version,
                "digest": digest_file(folder / STATE),
            }
            (folder / META).write_text(json.dumps(meta, indent=2) + "\n")
            before_commit()
        for outdated in self._newest_first()[self._keep :]:
            shutil.rmtree(outdated)
        return final

    def load(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are what was written; None when the run has none yet.

        Raises CheckpointError when there are checkpoints but none can be trusted: starting over would silently
        throw the run's work away.
        """
        folders = self._newest_first()
        for folder in folders:
            try:
                return self._read(folder)
            except UNUSABLE as error:
                log.warning("checkpoint_unusable", folder=str(folder), error=str(error))
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self._folder} can be loaded",
                hint="the log names what is wrong with each; restore one from a backup, or start with a new run.dir",
            )
        return None

    def go_back(self, weight_version: int) -> Checkpoint:
        """The checkpoint of that version, which is the newest from here on: later ones are dropped.

        Raises CheckpointError, and drops nothing, when there is none or its bytes are not what was written.
        """
        folder = self._folder / _folder_name(weight_version)
        if not folder.is_dir():
            held = ", ".join(path.name for path in self._newest_first()) or "none"
            raise CheckpointError(f"there is no checkpoint of version {weight_version}", hint=f"there are: {held}")
        try:
            found = self._read(folder)
        except UNUSABLE as error:
            raise CheckpointError(f"the checkpoint of version {weight_version} cannot be loaded: {error}") from error
        for later in self._newest_first():
            if later.name > folder.name:
                shutil.rmtree(later)
        return found

    def _read(self, folder: Path) -> Checkpoint:
        meta = json.loads((folder / META).read_text())
        if meta["run_id"] != self._run_id:
            raise CheckpointError(f"it belongs to run {meta['run_id']}, this is {self._run_id}")
        if folder.name != _folder_name(int(meta["weight_version"])):
            raise CheckpointError(f"it says that it is version {meta['weight_version']}")
        if digest_file(folder / STATE) != meta["digest"]:
            raise CheckpointError(f"{STATE} has changed since it was written")
        return Checkpoint(
            run_id=meta["run_id"],
            weight_version=int(meta["weight_version"]),
            tensors=safetensors.torch.load_file(folder / STATE),
        )

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("v[0-9]*"), reverse=True)


def _folder_name(weight_version: int) -> str:
    return f"v{weight_version:06d}"


def _write_state(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # how it reports what the operating system refused
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        raise CheckpointError(
            f"the checkpoint of {size} bytes cannot be written to {path.parent.parent}: {error}",
            hint="free some space on this disk, then start again: the run resumes where it was",
        ) from error
