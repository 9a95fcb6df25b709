"""Loads a Hugging Face checkpoint as the model that is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.config import GradientCheckpointing, LoraConfig
from learner.model import hf_checkpoint, lora
from learner.model.activation_checkpointing import checkpoint_activations
from learner.model.attention import PACKED_ATTENTION
from learner.model.flops import cost_of
from learner.model.onednn_linear import use_onednn
from learner.model.self_check import check_model
from learner.model.trained_model import LossModule, TrainedModel
from learner.parallel.ranks import Ranks
from learner.parallel.sharding import shard_module
from services.errors import ConfigError, ModelError

log = structlog.get_logger()

WireDtype = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; auto is CUDA if there is a device, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"training.device = {name!r} is not a torch device", hint='use "auto", "cpu" or "cuda"'
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"training.device = {name!r} is not supported", hint='use "auto", "cpu" or "cuda"')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.device = {name!r}, but torch finds no CUDA device", hint='use "auto" or "cpu"')
    return device


def load_model(
    path: str,
    *,
    device: str = "auto",
    wire_dtype: WireDtype = "auto",
    gradient_checkpointing: GradientCheckpointing = "off",
    adapters: LoraConfig | None = None,
    ranks: Ranks | None = None,
) -> TrainedModel:
    """Load a Hugging Face id or folder for training: float32, packed attention, no dropout, sharded over the ranks.

    Raises ModelError for a checkpoint that is not whole, and for an architecture that this learner would train wrongly
    (see `self_check`).
    """
    folder = hf_checkpoint.resolve_folder(path)
    ranks = ranks or Ranks()
    own_device = ranks.own_device(resolve_device(device))
    module = _read_module(folder, own_device)
    if own_device.type == "cpu":
        use_onednn(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    fixed = None if wire_dtype == "auto" else hf_checkpoint.SAFETENSORS_NAMES[wire_dtype]
    model = TrainedModel(
        loss_module=LossModule(module),
        folder=folder,
        device=own_device,
        cost=cost_of(module),
        wire_dtypes={} if fixed else {name: t.dtype for name, t in hf_checkpoint.stored_tensors(folder).items()},
        default_wire_dtype=fixed or hf_checkpoint.config_dtype(folder),
        autocast_dtype=torch.bfloat16 if own_device.type == "cuda" else None,
    )
    check_model(model)
    checkpoint_activations(module, gradient_checkpointing)
    if adapters is not None and adapters.rank:
        lora.add_adapters(module, adapters)
        log.info("adapters_added", rank=adapters.rank, adapter_bytes=lora.adapter_bytes(module))
    module.train()
    shard_module(model.loss_module, frozenset(module._no_split_modules or ()), ranks, own_device)
    return replace(model, ranks=ranks)


def _read_module(folder: Path, device: torch.device) -> PreTrainedModel:
    """The folder's model in float32 on the device; ModelError when the checkpoint lacks a weight."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=PACKED_ATTENTION,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder} cannot be loaded as a causal language model: {error}",
            hint="model.path must hold config.json and the weights of a causal language model",
        ) from error
    module, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{folder} lacks {len(missing)} weights, among them {missing[0]}", hint="copy the model again")
    read: PreTrainedModel = module.to(device)
    return read
