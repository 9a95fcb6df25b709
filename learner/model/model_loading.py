"""Loads a Hugging Face checkpoint as the model that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import structlog
import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, initialization

from learner.config import LoraConfig, Recomputation
from learner.model import hf_checkpoint, lora
from learner.model.activation_checkpointing import checkpoint_activations
from learner.model.attention import PACKED_ATTENTION
from learner.model.flops import cost_of
from learner.model.kernel_check import check_kernels
from learner.model.kernels.fused import use_fused
from learner.model.kernels.onednn_linear import use_onednn
from learner.model.self_check import check_model
from learner.model.trained_model import LossModule, TrainedModel
from learner.model.weight_reading import ReadingPlan, compute_buffers, plan_reading, read_weights
from learner.model_folder.config_facts import lengths_of_change, remove_randomness
from learner.parallel.ranks import Ranks
from learner.parallel.sharding import shard_module
from services.errors import ConfigError, ModelError, SeptError

log = structlog.get_logger()

WireDtype = Literal["auto", "float32", "bfloat16", "float16"]

LONGEST = 4096
"""Tokens of the longest sequence of a model of which nothing else is said."""
PAST_A_CHANGE = (8, 16)
"""Tokens by which checked sequences pass a length at which the model changes: two, to see state kept from one to the
next."""


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
    gradient_checkpointing: Recomputation = "off",
    adapters: LoraConfig | None = None,
    longest: int = LONGEST,
    ranks: Ranks | None = None,
    compute_dtype: torch.dtype | None = None,
) -> TrainedModel:
    """Load a Hugging Face id or folder for training: float32, packed attention, no dropout, sharded over the ranks.

    `compute_dtype` is the type of the forward's weights and activations: bf16 on CUDA and float32 on a CPU.
    A collective operation: each rank reads its own rows, and all of them take part in the check. Raises ModelError for
    a checkpoint that is not whole, and for an architecture that this learner would train wrongly (see `self_check`),
    with sequences of up to `longest` tokens.
    """
    model = read_model(
        path,
        device=device,
        wire_dtype=wire_dtype,
        gradient_checkpointing=gradient_checkpointing,
        adapters=adapters,
        longest=longest,
        ranks=ranks,
        compute_dtype=compute_dtype,
    )
    check_model(model)
    check_kernels(model)
    model.module.train()
    return model


def read_model(
    path: str,
    *,
    device: str,
    wire_dtype: WireDtype = "auto",
    gradient_checkpointing: Recomputation = "off",
    adapters: LoraConfig | None = None,
    longest: int = LONGEST,
    ranks: Ranks | None = None,
    compute_dtype: torch.dtype | None = None,
) -> TrainedModel:
    """`load_model` without the check of its forward."""
    folder = hf_checkpoint.resolve_folder(path)
    ranks = ranks or Ranks()
    own_device = ranks.own_device(resolve_device(device))
    module = _empty_module(folder)
    stored = hf_checkpoint.stored_tensors(folder)
    plan = plan_reading(module, stored)
    cost = cost_of(module)
    changes = lengths_of_change(module.config, longest)
    compute_dtype = compute_dtype or (torch.bfloat16 if own_device.type == "cuda" else torch.float32)
    _adapt(module, own_device, gradient_checkpointing, adapters)
    fixed = None if wire_dtype == "auto" else hf_checkpoint.SAFETENSORS_NAMES[wire_dtype]
    published = {fixed} if fixed else {hf_checkpoint.config_dtype(folder), *(t.dtype for t in stored.values())}
    if published == {hf_checkpoint.SAFETENSORS_NAMES["bfloat16"]} and compute_dtype == torch.bfloat16:
        lora.freeze_in(module, compute_dtype)
    loss_module = sharded_loss_module(module, ranks, own_device, compute_dtype)
    _fill(loss_module, plan, own_device)
    return TrainedModel(
        loss_module=loss_module,
        folder=folder,
        device=own_device,
        cost=cost,
        wire_dtypes={} if fixed else {name: tensor.dtype for name, tensor in stored.items()},
        default_wire_dtype=fixed or hf_checkpoint.config_dtype(folder),
        checked_lengths=tuple(sorted({min(n + past, longest) for n in changes for past in PAST_A_CHANGE})),
        ranks=ranks,
        compute_dtype=compute_dtype,
    )


def _empty_module(folder: Path) -> PreTrainedModel:
    """The folder's model in float32 on the meta device, where tensors have shapes and no memory."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ModelError(
                f"{folder} holds quantised weights, which cannot be trained", hint="use the model's unquantised release"
            )
        remove_randomness(config)
        with torch.device("meta"), initialization.meta_device_safe_creation_ops():
            options = {"dtype": torch.float32, "attn_implementation": PACKED_ATTENTION, "trust_remote_code": False}
            module: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    except SeptError:
        raise
    except Exception as error:  # of a class's own code, which may raise anything
        if error.args == (PACKED_ATTENTION,):
            error = NotImplementedError("its class has attention of its own, which knows nothing of packed sequences")
        raise ModelError(
            f"{folder} cannot be loaded as a causal language model: {type(error).__name__}: {error}",
            hint="model.path must hold config.json and the weights of a causal language model",
        ) from error
    return module


def _adapt(
    module: PreTrainedModel, device: torch.device, recompute: Recomputation, adapters: LoraConfig | None
) -> None:
    """Change the layers to what is trained: products, dropout, kept activations, adapters."""
    if device.type == "cpu":
        use_onednn(module)
    else:
        use_fused(module)
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = 0.0
    checkpoint_activations(module, recompute)
    if adapters is not None and adapters.rank:
        lora.add_adapters(module, adapters)
        log.info("adapters_added", rank=adapters.rank, adapter_bytes=lora.adapter_bytes(module))


def sharded_loss_module(
    module: PreTrainedModel, ranks: Ranks, device: torch.device, compute_dtype: torch.dtype
) -> LossModule:
    """The model, still on the meta device, with its loss, sharded over the ranks."""
    loss_module = LossModule(module)
    shard_module(loss_module.groups, ranks, device, compute_dtype)
    return loss_module


def _fill(loss_module: LossModule, plan: ReadingPlan, device: torch.device) -> None:
    """Give the tensors memory on the device, only this rank's rows of those that are sharded, and their values."""
    module = loss_module.model
    loss_module.to_empty(device=device)
    module.tie_weights(recompute_mapping=False)
    read_weights(module, plan)
    lora.initialise_adapters(module)
    compute_buffers(module)
