"""What the trained model computes for a few fixed prompts, so that whoever serves a version can prove that it serves
the learner's. Knows no store and no engine.

Legend of shapes: T tokens fed, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.attention import packing_arguments
from learner.lora import adapters_of
from learner.model import TORCH_DTYPES, TrainedModel
from learner.packing import Sequence, lay_out
from services.contracts import Canary
from services.errors import ModelError

PROMPT_TOKENS = 16
STRIDE = 7919
"""A prime: the prompts walk over the whole vocabulary, which no data set and no tokenizer has to be asked for."""


def sing(model: TrainedModel, prompts: int) -> tuple[Canary, ...]:
    """So many canaries: log-probabilities in float32 arithmetic, by the weights rounded to their published types.

    The module itself computes them, not the published bytes: what goes wrong on the way from here to an engine's
    kernels (names, layouts, tied weights) shows. ModelError when they are not finite.
    None for a model that no one process computes with as it is published: sharded, or with adapters beside its weights.
    """
    if not prompts or model.ranks.size > 1 or adapters_of(model.module):
        return ()
    token_ids = _prompts(prompts, model.module.config.get_text_config().vocab_size)
    log_probs = _log_probs(model, token_ids).reshape(prompts, PROMPT_TOKENS - 1)
    if not bool(torch.isfinite(log_probs).all()):
        raise ModelError(
            "the model computes log-probabilities that are not finite: its weights have diverged",
            hint="start again from an earlier checkpoint with a lower training.learning_rate",
        )
    return tuple(
        Canary(tokens=tuple(tokens), log_probs=tuple(row))
        for tokens, row in zip(token_ids.tolist(), log_probs.tolist(), strict=True)
    )


def _prompts(count: int, vocabulary: int) -> NDArray[np.int32]:
    """[count, PROMPT_TOKENS] token ids, the same for every version."""
    ids: NDArray[np.int64] = np.arange(1, 1 + count * PROMPT_TOKENS, dtype=np.int64) * STRIDE % vocabulary
    return ids.astype(np.int32).reshape(count, PROMPT_TOKENS)


def _log_probs(model: TrainedModel, token_ids: NDArray[np.int32]) -> torch.Tensor:
    """Log-probabilities of every prompt's tokens after its first, end to end."""
    batch = lay_out([Sequence(tokens[:1], tokens[1:]) for tokens in token_ids]).to(model.device)
    training = model.module.training
    model.module.train(False)
    try:
        with torch.no_grad(), _as_published(model):
            logits_TV = model.module(
                input_ids=batch.input_ids[None],
                position_ids=batch.position_ids[None],
                use_cache=False,
                **packing_arguments(batch),
            ).logits[0]
    finally:
        model.module.train(training)
    log_probs: torch.Tensor = logits_TV.float().log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    return log_probs


@contextlib.contextmanager
def _as_published(model: TrainedModel) -> Iterator[None]:
    """Each layer computes with its weights as published; the memory that takes is one layer's."""
    handles = []
    for path, layer in model.module.named_modules():
        exact: dict[str, torch.Tensor] = {}
        enter, leave = partial(_round, model, path, exact), partial(_restore, exact)
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _round(model: TrainedModel, path: str, exact: dict[str, torch.Tensor], layer: torch.nn.Module, _: Any) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        dtype = TORCH_DTYPES[model.wire_dtype(f"{path}.{name}")]
        exact[name] = parameter.data
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def _restore(exact: dict[str, torch.Tensor], layer: torch.nn.Module, *_: Any) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.data = exact.pop(name)
