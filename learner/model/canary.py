"""Computes canaries: the trained model's log-probabilities for a few fixed prompts. A generator that serves a version
compares its own with them, to prove that it serves the learner's weights.

Legend of shapes: T tokens fed, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model import packing
from learner.model.lora import adapters_of, base_name, is_adapter, merge_adapter
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import TORCH_DTYPES
from learner.parallel.ranks import Order
from services.contracts import Canary
from services.errors import ModelError

PROMPT_TOKENS = 16
MAX_PROMPT_TOKENS = 8192
"""Of the longest canary; what changes at greater lengths is checked when the model is loaded only."""
STRIDE = 7919
"""A prime: the prompts step through the whole vocabulary, and need neither data set nor tokenizer."""


def compute_canaries(model: TrainedModel, prompts: int) -> tuple[Canary, ...]:
    """That many canaries: log-probabilities in float32 arithmetic, with weights merged and rounded as published.

    The last of them are long enough to pass the lengths at which the model changes what it computes.

    The trained module computes them, not the published bytes, so that every mistake between here and an engine's
    kernels (names, layouts, tied weights) shows. ModelError when they are not finite.
    Rank 0 calls this; the other ranks take part by `join_canaries`.
    """
    if not prompts:
        return ()
    model.ranks.send_order(Order.CANARIES)
    token_ids = _prompts(_lengths(prompts, model.checked_lengths), model.module.config.get_text_config().vocab_size)
    log_probs = _log_probs(model, token_ids)
    if not bool(torch.isfinite(log_probs).all()):
        raise ModelError(
            "the model computes log-probabilities that are not finite: its weights have diverged",
            hint="start again from an earlier checkpoint with a lower training.learning_rate",
        )
    of_prompts = torch.split(log_probs, [tokens.size - 1 for tokens in token_ids])
    return tuple(
        Canary(tokens=tuple(tokens.tolist()), log_probs=tuple(row.tolist()))
        for tokens, row in zip(token_ids, of_prompts, strict=True)
    )


def _lengths(count: int, checked: Sequence[int]) -> list[int]:
    """Tokens of each canary, ascending. Of several the first is short in any case: an engine that takes what is meant
    for long sequences for all of them is right for the long ones."""
    passed = [length for length in checked if length <= MAX_PROMPT_TOKENS]
    long = passed[-max(1, count - 1) :]
    return [PROMPT_TOKENS] * (count - len(long)) + long


def _prompts(lengths: Sequence[int], vocabulary: int) -> list[NDArray[np.int32]]:
    """Token ids of prompts of these lengths, the same for every version."""
    ids: NDArray[np.int64] = np.arange(1, 1 + sum(lengths), dtype=np.int64) * STRIDE % vocabulary
    return np.split(ids.astype(np.int32), np.cumsum(lengths[:-1]))


def join_canaries(model: TrainedModel) -> None:
    """On the other ranks: take part in rank 0's `compute_canaries`."""
    _log_probs(model, _prompts([PROMPT_TOKENS], model.module.config.get_text_config().vocab_size))


def _log_probs(model: TrainedModel, token_ids: Sequence[NDArray[np.int32]]) -> torch.Tensor:
    """Log-probabilities of every prompt's tokens after its first, concatenated, in the mode that trains."""
    sequences = [packing.Sequence(tokens[:1], tokens[1:]) for tokens in token_ids]
    batch = packing.pack_sequences(sequences).to(model.device)
    with torch.no_grad(), _as_published(model):
        return model.token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs


@contextlib.contextmanager
def _as_published(model: TrainedModel) -> Iterator[None]:
    """Within the block each layer computes in float32 with its weights as published. Every rank must enter it."""
    adapters = adapters_of(model.module)
    exact = {
        part: part.weight for layer in adapters.values() for part in (*layer.lora_A.values(), *layer.lora_B.values())
    }
    with model.exact_weights(partial(_published, model, adapters, exact)):
        yield


def _published(
    model: TrainedModel,
    adapters: Mapping[str, Any],
    exact: Mapping[torch.nn.Module, torch.Tensor],
    path: str,
    weight: torch.Tensor,
) -> torch.Tensor:
    """The weight as published, in float32. An adapter is merged into its weight, so its own factors become 0."""
    if is_adapter(path):
        return torch.zeros_like(weight)
    name = base_name(path)
    name = model.module.all_tied_weights_keys.get(name, name)
    dtype = TORCH_DTYPES[model.wire_dtype(name)]
    merged = merge_adapter(weight, adapters[name], dtype, exact.__getitem__) if name in adapters else weight.to(dtype)
    return merged.to(weight.dtype)
