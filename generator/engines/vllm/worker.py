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
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload
from vllm.platforms import current_platform

from generator.engines.vllm.handover import BACKEND, GENERATOR_PID, INDICES, VALUES
from generator.engines.vllm.patching import PatchPlan, patchable
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
    """Checkpoint shapes of the tensors that the file patches."""
    replaced: list[str] = field(default_factory=list)
    """Names of the whole tensors in the file that are written in place; all other whole tensors are reloaded."""


class FileWeightTransfer(WeightTransferEngine[NoInitInfo, FileUpdate]):  # type: ignore[misc]
    """Loads an update from a file through the model's own loader, so that fused and sharded layers come out right.

    Patches go into the parameters in place (`patching`), piece by piece. Whole tensors go through the layerwise reload,
    which also repeats what the layer does to its weights after loading (packing on CPU, quantisation, shuffling) and
    keeps the tensors' addresses.
    """

    init_info_cls = NoInitInfo
    update_info_cls = FileUpdate
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._plan = PatchPlan(model)
        if GENERATOR_PID in os.environ:
            _end_after(int(os.environ[GENERATOR_PID]))
        # it warns of every layer that an update does not change
        logging.getLogger(initialize_layerwise_reload.__module__).setLevel(logging.ERROR)

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing to do before the file is written."""

    def receive_weights(self, update_info: FileUpdate) -> None:
        with safe_open(Path(update_info.path), framework="pt") as file, torch.no_grad():
            self._write_in_place(file, update_info)
            written = {prefix + name for name in update_info.patched_shapes for prefix in (INDICES, VALUES)}
            reloaded = [name for name in file.keys() if name not in written.union(update_info.replaced)]  # noqa: SIM118
            if reloaded:
                self._reload(file, reloaded)

    def patchable_tensors(self) -> list[str]:
        """Names of the tensors that may be patched: the model keeps them as its folder's checkpoint has them."""
        if current_platform.is_cpu():  # its kernels compute with packed copies
            return []
        with safe_open(Path(self.model_config.model) / "model.safetensors", framework="pt") as file:
            checkpoint = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return sorted(patchable(self.model, self._plan, checkpoint))

    def finish_weight_update(self) -> None:
        """Nothing to do: `receive_weights` leaves the model complete."""

    def shutdown(self) -> None:
        """Keeps nothing between updates; the worker ends now."""
        gc.freeze()  # else the collector searches a million objects for cycles, three times, which takes seconds

    def _write_in_place(self, file: Any, update_info: FileUpdate) -> None:
        patched = update_info.patched_shapes
        patches = {name: (file.get_tensor(INDICES + name), file.get_tensor(VALUES + name)) for name in patched}
        whole = {name: file.get_tensor(name) for name in update_info.replaced}
        shapes = {name: (tuple(shape), patches[name][1].dtype) for name, shape in patched.items()}
        self._plan.locate(shapes | {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in whole.items()})
        for name, (positions, values) in patches.items():
            self._plan.patch(name, positions, values)
        for name, tensor in whole.items():
            self._plan.replace(name, tensor)

    def _reload(self, file: Any, names: list[str]) -> None:
        self._plan.forget()
        with torch.device(self.device):
            reload_weights(self.model, self.model_config, ((name, file.get_tensor(name)) for name in names))


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
    weight_transfer_engine: Any

    def patchable_tensors(self) -> list[str]:
        """Names of the checkpoint's tensors that updates may patch in place."""
        names: list[str] = self.weight_transfer_engine.patchable_tensors()
        return names

    def served_digests(self, types: dict[str, str]) -> dict[str, str]:
        """BLAKE3 of each tensor as the model computes with it, cast to its type in the checkpoint (`types`, by name).

        Cast back, a value that came from that type is exact. Tensors that the model does not serve are left out.
        """
        digests: dict[str, str] = {}
        with torch.no_grad():
            for name, tensor in served_tensors(self.model_runner.get_model(), types):
                if types.get(name) in SERVED_TYPES:
                    digest = _digest(tensor.to(SERVED_TYPES[types[name]]))
                    if digests.setdefault(name, digest) != digest:
                        raise RuntimeError(f"the layers that share {name} serve different weights")
        return digests


def _digest(tensor: torch.Tensor) -> str:
    return digest_bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
