"""Reads a checkpoint into a model that is sharded already: each rank reads its own rows of every tensor, one at a time.

A tensor of the model is either one of the checkpoint's under another name, or made of several (the weights of experts,
which transformers keeps in one tensor). The latter are read whole and converted one after the other, so a rank holds
at most its rows of the model and one tensor.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from learner.model.lora import base_name, is_adapter
from learner.parallel.file_tensors import FileTensor
from learner.parallel.sharding import copy_to_shard
from services.errors import ModelError, WeightError

log = structlog.get_logger()

COMPARED_ROWS = 1 << 12
"""Rows that are compared at a time where a checkpoint holds both of two tied tensors."""

Stored = Mapping[str, FileTensor]
"""The checkpoint's tensors by its names."""


@dataclass(slots=True)
class _Conversion:
    """How transformers makes tensors of the model from several of the checkpoint's, or from one by more than a name."""

    converter: WeightConverter
    sources: list[tuple[str, str, FileTensor]] = field(default_factory=list)
    """(name, pattern of the converter that it matched, tensor), in the order in which transformers collects them."""


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """Which tensors of a checkpoint make up which tensors of a model; names are the model's without adapters."""

    renamed: Mapping[str, FileTensor]
    converted: Mapping[str, _Conversion]
    """By the name of the first tensor that the conversion makes."""


def plan_reading(module: PreTrainedModel, stored: Stored) -> ReadingPlan:
    """Match names as `from_pretrained` does. The module is on the meta device, without adapters and not sharded.

    Tied tensors of which the checkpoint holds two different values are untied, as `from_pretrained` does.
    """
    transforms = get_model_conversion_mapping(module)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    names = module.state_dict()
    renamed: dict[str, FileTensor] = {}
    converted: dict[str, _Conversion] = {}
    ignored = []
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = _target_of(name, module, names, transforms)
        if target not in names:
            ignored.append(name)
        elif pattern is None:
            renamed[target] = stored[name]
        else:
            conversion = converted.setdefault(target, _Conversion(copy.deepcopy(by_pattern[pattern])))
            conversion.sources.append((name, pattern, stored[name]))
    # What was used is needed to turn the names back when the weights are published.
    module._weight_conversions = [transform for transform in transforms if transform.was_used()]  # type: ignore[assignment]
    _log_ignored(module, ignored)
    if converted:
        log.info("tensors_converted_whole", tensors=len(converted), first=min(converted))
    return ReadingPlan(_untied(module, renamed), converted)


def _target_of(
    name: str, module: PreTrainedModel, names: Mapping[str, torch.Tensor], transforms: list[WeightTransform]
) -> tuple[str, str | None]:
    """(name in the model, pattern of the converter that applies or None) of a tensor in the checkpoint."""
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix, known = module.base_model_prefix, dict(names)
    target, pattern = rename_source_key(name, renamings, converters, prefix, known)
    if target not in names and name in names:  # it should not have been renamed, except for the prefix
        target, pattern = rename_source_key(name, [], [], prefix, known)
    return target, pattern


def _log_ignored(module: PreTrainedModel, names: list[str]) -> None:
    """Name the tensors that the model has no place for, but not those that its class expects to be superfluous."""
    patterns = [*(module._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    unexpected = [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]
    if unexpected:
        log.warning("tensors_ignored", tensors=len(unexpected), first=unexpected[0])


def _untied(module: PreTrainedModel, renamed: dict[str, FileTensor]) -> dict[str, FileTensor]:
    """`renamed` with one of each two tied tensors that are equal; those that differ are untied in the module."""
    kept = dict(renamed)
    for target, source in list(module.all_tied_weights_keys.items()):
        if target not in kept or source not in kept:
            continue
        if _equal(kept[target], kept[source]):
            del kept[target]
            continue
        log.warning("tied_tensors_differ", tensor=target, tied_to=source)
        del module.all_tied_weights_keys[target]
        owner, _, attribute = target.rpartition(".")
        tied = module.get_parameter(target)
        setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(torch.empty_like(tied)))
    return kept


def _equal(one: FileTensor, other: FileTensor) -> bool:
    if one.shape != other.shape:
        return False
    starts = range(0, one.shape[0], COMPARED_ROWS)
    return all(
        torch.equal(one[start : start + COMPARED_ROWS], other[start : start + COMPARED_ROWS]) for start in starts
    )


def read_weights(module: PreTrainedModel, plan: ReadingPlan) -> None:
    """Fill this rank's rows of the module's parameters and persistent buffers.

    Raises ModelError when the checkpoint lacks one of them or holds it in another shape.
    """
    tensors = {
        base_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items() if not is_adapter(name)
    }
    filled: set[int] = set()

    def fill(name: str, saved: Any) -> None:
        target = tensors[name]
        if tuple(saved.shape) != tuple(target.shape):
            raise ModelError(
                f"{name} has shape {tuple(saved.shape)} in the checkpoint, config.json makes it {tuple(target.shape)}",
                hint="copy the model again: its config.json belongs to other weights",
            )
        copy_to_shard(target, saved)
        filled.add(id(target))

    try:
        for name, saved in plan.renamed.items():
            fill(name, saved)
        for first, conversion in plan.converted.items():
            for name, made in _convert(module, first, conversion).items():
                fill(name, made)
    except WeightError as error:
        raise ModelError(
            f"the weights of {type(module).__name__} cannot be read: {error}", hint="copy or download the model again"
        ) from error
    missing = sorted(name for name, tensor in tensors.items() if id(tensor) not in filled)
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing)} weights, among them {missing[0]}", hint="copy the model again"
        )


def _convert(module: PreTrainedModel, first: str, conversion: _Conversion) -> dict[str, torch.Tensor]:
    """The whole tensors that a conversion makes, by name."""
    for name, pattern, tensor in conversion.sources:
        # transformers takes functions that read, and calls them when it converts.
        conversion.converter.add_tensor(first, name, pattern, partial(tensor.__getitem__, ...))  # type: ignore[arg-type]
    made = conversion.converter.convert(first, model=module, config=module.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def compute_buffers(module: PreTrainedModel) -> None:
    """Compute the buffers that no checkpoint holds, such as the frequencies of rotary embeddings.

    The module's own initialisation does it; it leaves alone what is marked as read.
    """
    for tensor in module.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    module.initialize_weights()  # type: ignore[no-untyped-call]
