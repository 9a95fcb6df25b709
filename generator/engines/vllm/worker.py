"""Loads weight updates from a local file and digests the weights served. Runs in vLLM's worker processes only, which
import it because `worker_extension_cls` names `ServedWeights`.

Importing it registers the weight-transfer engine "sept". vLLM's engine core labels the tokens with versions, not this.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

from generator.engines.vllm.handover import BACKEND, GENERATOR_PID, INDICES, VALUES
from generator.engines.vllm.reload import reload_weights
from generator.engines.vllm.served_weights import served_tensors
from services.tensors import digest_bytes

SERVED_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's types by safetensors' names, of the tensors whose served values can be compared with published ones."""


@dataclass
class NoInitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is untyped here
    """The first update needs no preparation."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One update, complete in one safetensors file on this machine."""

    path: str
    patched_shapes: dict[str, list[int]] = field(default_factory=dict)
    """Checkpoint shapes of the tensors that the file patches; empty: the file holds whole tensors."""


class FileWeightTransfer(WeightTransferEngine[NoInitInfo, FileUpdate]):  # type: ignore[misc]
    """Loads an update from a file through the model's own loader, so that fused and sharded layers come out right.

    Patches go into the parameters in place. Whole tensors go through the layerwise reload, which also repeats what
    the layer does to its weights after loading (packing on CPU, quantisation) and keeps the tensors' addresses.
    """

    init_info_cls = NoInitInfo
    update_info_cls = FileUpdate
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        if GENERATOR_PID in os.environ:
            _end_after(int(os.environ[GENERATOR_PID]))
        # it warns of every layer that an update does not change
        logging.getLogger(initialize_layerwise_reload.__module__).setLevel(logging.ERROR)

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing to do before the file is written."""

    def receive_weights(self, update_info: FileUpdate) -> None:
        if update_info.patched_shapes:
            self._patch(Path(update_info.path), update_info.patched_shapes)
        else:
            self._reload(Path(update_info.path))

    def finish_weight_update(self) -> None:
        """Nothing to do: `receive_weights` leaves the model complete."""

    def shutdown(self) -> None:
        """Keeps nothing between updates; the worker ends now."""
        gc.freeze()  # else the collector searches a million objects for cycles, three times, which takes seconds

    def _patch(self, path: Path, shapes: dict[str, list[int]]) -> None:
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            # the values are whole elements at ascending positions, as the mirror verified: no need to sort them again
            load_checkpoint_weight_patches(
                self.model,
                [_read_patch(file, name, shape) for name, shape in shapes.items()],
                validate_unique_indices=False,
            )

    def _reload(self, path: Path) -> None:
        with torch.device(self.device), safe_open(path, framework="pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            reload_weights(self.model, self.model_config, tensors)


WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransfer)


def _end_after(generator_pid: int) -> None:
    """End vLLM's processes when the generator's process has ended; a generator that was killed cannot do it."""
    core = os.getpid() if os.getppid() == generator_pid else os.getppid()

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            ended = select.poll()
            ended.register(os.pidfd_open(generator_pid), select.POLLIN)
            ended.poll()
        os.kill(core, signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-generator", daemon=True).start()


class ServedWeights:
    """Methods that vLLM adds to its worker class; `model_runner` is the worker's own."""

    model_runner: Any

    def served_digests(self, types: dict[str, str]) -> dict[str, str]:
        """BLAKE3 of each tensor as the model computes with it, cast to its type in the checkpoint (`types`, by name).

        Cast back, a value that came from that type is exact. Tensors that the model does not serve are left out.
        """
        digests: dict[str, str] = {}
        with torch.no_grad():
            for name, tensor in served_tensors(self.model_runner.get_model()):
                if types.get(name) in SERVED_TYPES:
                    digest = _digest(tensor.to(SERVED_TYPES[types[name]]))
                    if digests.setdefault(name, digest) != digest:
                        raise RuntimeError(f"the layers that share {name} serve different weights")
        return digests


def _read_patch(file: Any, name: str, shape: list[int]) -> CheckpointWeightPatch:
    values = file.get_tensor(VALUES + name)
    return CheckpointWeightPatch(name, tuple(shape), values.dtype, values, file.get_tensor(INDICES + name))


def _digest(tensor: torch.Tensor) -> str:
    return digest_bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
