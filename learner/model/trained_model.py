"""The model that is trained: float32 weights, packed forward, and their copy for the wire. Knows no optimizer.

With several ranks the weights are sharded; every rank then takes part in each forward and each copy.

Legend of shapes: T tokens fed, N response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from learner.algorithms.base import Targets, TokenLoss, TokenLosses
from learner.algorithms.nll import nll
from learner.config import LoraConfig, Recompute
from learner.model import hf_checkpoint, lora
from learner.model.activation_checkpointing import recompute
from learner.model.attention import PACKED_ATTENTION, packing_arguments
from learner.model.flops import Cost, cost_of
from learner.model.onednn_linear import use_onednn
from learner.model.packing import MicroBatch, Sequence, filler, lay_out
from learner.model.vocabulary_loss import Head, summed_loss
from learner.parallel.ranks import Order, Ranks
from learner.parallel.sharding import shard, whole
from services.errors import ConfigError, ModelError
from services.weights.adapters import Adapter, pack
from services.weights.tensors import RawTensor

log = structlog.get_logger()

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the types that weights are published in."""

SELF_CHECK_TOLERANCE = 1e-3
"""Largest difference in a float32 log-probability that rounding explains in the check at loading."""

WireDtype = Literal["auto", "float32", "bfloat16", "float16"]


class Scorer(torch.nn.Module):
    """The whole forward, head and loss included, as the module that sharding hooks into."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def head(self) -> Head:
        """The last layer, which maps hidden states to logits."""
        layer: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return Head(layer.weight, getattr(layer, "bias", None), softcap)

    def forward(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        out = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packing_arguments(batch),
        )
        hidden_NH = out.last_hidden_state[0].index_select(0, batch.rows)
        return summed_loss(token_loss, hidden_NH, self.head, targets, tau)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A causal language model with float32 master weights, on one device per rank."""

    scorer: Scorer
    folder: Path
    """Where it was loaded from."""
    device: torch.device
    cost: Cost
    wire_dtypes: Mapping[str, str] = field(repr=False)
    """Checkpoint name -> safetensors' name of the type it is published in."""
    default_wire_dtype: str
    """Of floating tensors that `wire_dtypes` does not name."""
    ranks: Ranks = field(default_factory=Ranks)
    autocast_dtype: torch.dtype | None = None
    """Type of the forward's products; None: float32 like the weights."""

    @property
    def module(self) -> PreTrainedModel:
        """The model in transformers' form; its parameters are this rank's parts."""
        return self.scorer.model

    def wire_dtype(self, name: str) -> str:
        """safetensors' name of the type in which the floating tensor of that name is published."""
        return self.wire_dtypes.get(name, self.default_wire_dtype)

    def score(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        """Forward of one micro-batch: the loss summed over N response tokens, and their log-probabilities [N].

        All ranks call it at once, each with a micro-batch of its own.
        """
        # No cache of cast weights: each is used once a forward, and all casts together would undo the sharding.
        mixed = self.autocast_dtype is not None
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=mixed, cache_enabled=False):
            losses: TokenLosses = self.scorer(batch, token_loss, targets, tau)
        return losses

    def losses(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        """The same when rank 0 alone wants to know, without gradients; the others go along."""
        self.ranks.announce(Order.FORWARD)
        return self.score(batch, token_loss, targets, tau)

    def go_along(self) -> None:
        """On the other ranks: take part in a forward that rank 0 wants."""
        batch = filler().to(self.device)
        with torch.no_grad():
            self.score(batch, nll, Targets(batch.targets), 1.0)


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; auto is CUDA where there is one, else the CPU."""
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
    gradient_checkpointing: Recompute = "off",
    adapters: LoraConfig | None = None,
    ranks: Ranks | None = None,
) -> TrainedModel:
    """Load a Hugging Face id or folder for training: float32, packed attention, no dropout, sharded over the ranks.

    Before it is handed out, its packed log-probabilities are compared with those of the model's own forward, so that
    an architecture this learner would train wrongly is refused here (ModelError) instead of learning nonsense.
    """
    folder = hf_checkpoint.resolve_folder(path)
    ranks = ranks or Ranks()
    place = ranks.device(resolve_device(device))
    module = _read_module(folder, place)
    if place.type == "cpu":
        use_onednn(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    fixed = None if wire_dtype == "auto" else hf_checkpoint.SAFETENSORS_NAMES[wire_dtype]
    model = TrainedModel(
        scorer=Scorer(module),
        folder=folder,
        device=place,
        cost=cost_of(module),
        wire_dtypes={} if fixed else {name: t.dtype for name, t in hf_checkpoint.stored_tensors(folder).items()},
        default_wire_dtype=fixed or hf_checkpoint.config_dtype(folder),
        autocast_dtype=torch.bfloat16 if place.type == "cuda" else None,
    )
    check_model(model)
    recompute(module, gradient_checkpointing)
    if adapters is not None and adapters.rank:
        lora.add_adapters(module, adapters)
        log.info("adapters_added", rank=adapters.rank, adapter_bytes=lora.adapter_bytes(module))
    module.train()
    shard(model.scorer, frozenset(module._no_split_modules or ()), ranks, place)
    return replace(model, ranks=ranks)


def _read_module(folder: Path, device: torch.device) -> PreTrainedModel:
    """The folder's model in float32 on the device, every weight of it from the checkpoint."""
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


def check_model(model: TrainedModel) -> None:
    """Raise ModelError unless packed log-probabilities are those of the model's own forward, sequence by sequence."""
    vocabulary = model.scorer.head.weight.shape[0]
    tokens = (np.arange(1, 24, dtype=np.int64) * 7919 % vocabulary).astype(np.int32)
    sequences = [Sequence(tokens[:5], tokens[5:12]), Sequence(tokens[12:13], tokens[13:])]
    batch = lay_out(sequences).to(model.device)
    model.module.train(False)
    exact = replace(model, autocast_dtype=None)
    with torch.no_grad():
        packed = exact.losses(batch, nll, Targets(batch.targets), tau=1.0).log_probs
        model.module.set_attn_implementation("eager")
        alone = torch.cat([_own_log_probs(model, sequence) for sequence in sequences])
        model.module.set_attn_implementation(PACKED_ATTENTION)
    difference = float((packed - alone).abs().max())
    if not difference <= SELF_CHECK_TOLERANCE:
        raise ModelError(
            f"packed log-probabilities of {type(model.module).__name__} differ from its own by {difference:.2g}, "
            f"more than {SELF_CHECK_TOLERANCE:g}",
            hint="its attention or its last layer is not the usual one; this learner cannot train it",
        )


def _own_log_probs(model: TrainedModel, sequence: Sequence) -> torch.Tensor:
    """[R] log-probabilities of the response by the model's ordinary forward."""
    tokens = torch.from_numpy(np.concatenate([sequence.prompt_tokens, sequence.response_tokens]).astype(np.int64))
    tokens = tokens.to(model.device)
    logits_TV = model.module(input_ids=tokens[None, :-1], use_cache=False).logits[0]
    log_probs: torch.Tensor = logits_TV.float().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    return log_probs[sequence.prompt_tokens.size - 1 :]


def wire_tensors(model: TrainedModel) -> dict[str, RawTensor]:
    """The weights as they are published: checkpoint names, tied weights once, adapters merged, rounded to nearest even.

    Every tensor is a copy in host memory: it stays what it is while training goes on. They are gathered one at a time;
    the ranks that only help to gather them get nothing.
    """
    model.ranks.announce(Order.WEIGHTS)
    return {name: raw for name, tensor in _checkpoint_tensors(model) if (raw := _raw(name, tensor, model)) is not None}


def _checkpoint_tensors(model: TrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as `save_pretrained` would write them; of tensors that share memory only the source is kept."""
    tied = set(model.module.all_tied_weights_keys)
    adapters = lora.adapters_of(model.module)
    state = {
        lora.base_name(name): tensor
        for name, tensor in model.module.state_dict().items()
        if name not in tied and not lora.is_adapter(name)
    }
    named: dict[str, Any] = dict(revert_weight_conversion(model.module, state))
    if not adapters.keys() <= named.keys():
        missing = min(adapters.keys() - named.keys())
        raise ModelError(
            f"{missing} has an adapter and no place in the checkpoint", hint="leave it out of lora.targets"
        )
    for name, tensor in named.items():
        yield name, lora.merged(tensor, adapters[name], _torch_dtype(name, model)) if name in adapters else tensor


def wire_adapters(model: TrainedModel) -> dict[str, RawTensor] | None:
    """The adapters that `wire_tensors` merges, as they are sent; None without adapters and on ranks that only help."""
    layers = lora.adapters_of(model.module)
    if not layers:
        return None
    model.ranks.announce(Order.ADAPTERS)
    factors = {name: lora.factors(layer) for name, layer in layers.items()}
    if not model.ranks.leads:
        return None
    return pack({name: Adapter(b.cpu().numpy(), a.cpu().numpy(), scale) for name, (b, a, scale) in factors.items()})


def _raw(name: str, tensor: torch.Tensor, model: TrainedModel) -> RawTensor | None:
    """One tensor in its wire type, copied exactly once; None on the ranks that publish nothing."""
    if tensor.is_floating_point():
        dtype, target = model.wire_dtype(name), _torch_dtype(name, model)
    else:
        dtype = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}[tensor.dtype]
        target = tensor.dtype
    copy = whole(tensor.detach().to(target, copy=True))
    if not model.ranks.leads:
        return None
    copy = copy.to("cpu").contiguous()
    return RawTensor(dtype, tuple(tensor.shape), copy.reshape(-1).view(torch.uint8).numpy())


def _torch_dtype(name: str, model: TrainedModel) -> torch.dtype:
    """The type in which the floating tensor of that name is published."""
    dtype = model.wire_dtype(name)
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"{name} is stored as {dtype}", hint="train an unquantised model, or set model.wire_dtype")
    return TORCH_DTYPES[dtype]
