"""Checks a loaded model: what it computes in training, packed, must be what its own, ordinary forward computes.

The sequences pass every length at which the model changes, and short ones are packed with longer ones. A model that
computes sequences only one at a time (state that runs on from token to token, rotary embeddings that follow the longest
sequence of a batch) is trained in that way.

Legend of shapes: T tokens, R response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import structlog
import torch

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.attention import PACKED_ATTENTION
from learner.model.packing import MicroBatch, Sequence, pack_sequences
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import is_loss
from services.errors import ModelError

log = structlog.get_logger()

TOLERANCE = 1e-3
"""Largest difference in a float32 log-probability that rounding explains."""
EAGER_TOKENS = 2048
"""Tokens of the longest sequence for which a model's plainest attention, all scores at once, has the memory."""


def check_model(model: TrainedModel) -> None:
    """Leave the model in training mode, packing if it can; ModelError if it would train another function than its own.

    Every rank calls it.
    """
    sequences = _sequences(model)
    batch = pack_sequences(sequences).to(model.device)
    with torch.no_grad(), model.exact_weights():
        own = _computed(model, lambda: _own_log_probs(model, sequences))
        model.module.train()
        difference = _difference(model, batch, own)
        if difference <= TOLERANCE:
            return
        model.loss_module.packs = False
        alone = _difference(model, batch, own)
        again = _difference(model, batch, own)
    name = type(model.module).__name__
    if abs(alone - again) > 0:  # not for NaN
        raise ModelError(
            f"{name} computes something else each time in training: it is random, and no dropout or jitter of its "
            "config.json sets how much",
            hint="this learner cannot train it; the model that samples is not random",
        )
    if not alone <= TOLERANCE:
        raise ModelError(
            f"packed log-probabilities of {name} differ from its own by {alone:.2g}, more than {TOLERANCE:g}, also for "
            "one sequence at a time",
            hint=_remedy(model),
        )
    _allow_one_at_a_time(model, difference)


def _remedy(model: TrainedModel) -> str:
    if model.checked_lengths:
        return (
            f"among the sequences that differ may be those of {model.checked_lengths[0]} tokens or more, where it "
            "changes what it computes: lower data.max_prompt_tokens and sampling.max_response_tokens"
        )
    return "its attention or its last layer is not the usual one; this learner cannot train it"


def _allow_one_at_a_time(model: TrainedModel, difference: float) -> None:
    """Sequences that are not packed are a forward each, of which all ranks would need the same number."""
    name, ranks = type(model.module).__name__, model.ranks.size
    if ranks > 1:
        raise ModelError(
            f"{name} computes sequences only one at a time (packed, its log-probabilities differ by {difference:.2g}), "
            f"and training.ranks is {ranks}",
            hint="set training.ranks = 1",
        )
    log.warning("one_sequence_at_a_time", model=name, packed_differs_by=round(difference, 4))


def _sequences(model: TrainedModel) -> list[Sequence]:
    """Two short ones with one for each of the checked lengths in between, the longest first.

    In the other order a rotary embedding that keeps the frequencies of a longer sequence would not be noticed.
    """
    vocabulary = model.loss_module.vocabulary
    lengths = (12, *reversed(model.checked_lengths), 11)
    tokens = (np.arange(1, 1 + sum(lengths), dtype=np.int64) * 7919 % vocabulary).astype(np.int32)
    parts = np.split(tokens, np.cumsum(lengths[:-1]))
    return [Sequence(part[: 1 + part.size // 3], part[1 + part.size // 3 :]) for part in parts]


def _difference(model: TrainedModel, batch: MicroBatch, own: torch.Tensor) -> float:
    """Largest difference of a log-probability; NaN where one of them is."""
    packed = _computed(model, lambda: model.token_losses(batch, nll, Targets(batch.targets), tau=1.0).log_probs)
    return float((packed - own).abs().max())


def _own_log_probs(model: TrainedModel, sequences: list[Sequence]) -> torch.Tensor:
    """[R] log-probabilities of the responses by the model's ordinary forward, one by one, the shortest first."""
    model.module.train(False)
    model.module.set_attn_implementation("eager" if max(s.fed_tokens for s in sequences) <= EAGER_TOKENS else "sdpa")
    log_probs: dict[int, torch.Tensor] = {}
    for place, sequence in sorted(enumerate(sequences), key=lambda pair: pair[1].fed_tokens):
        tokens = torch.from_numpy(np.concatenate([sequence.prompt_tokens, sequence.response_tokens]).astype(np.int64))
        tokens = tokens.to(model.device)
        log_probs_TV = model.loss_module.own_logits(tokens[None, :-1])[0].float().log_softmax(-1)
        log_probs_T = log_probs_TV.gather(-1, tokens[1:, None])[:, 0]
        log_probs[place] = log_probs_T[sequence.prompt_tokens.size - 1 :]
    model.module.set_attn_implementation(PACKED_ATTENTION)
    return torch.cat([log_probs[place] for place in range(len(sequences))])


def _computed(model: TrainedModel, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What the forward returns; ModelError for what the model's own code raises."""
    cause: Exception
    try:
        return forward()
    except (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, ImportError) as error:
        cause = error
    except RuntimeError as error:  # of shapes that do not fit; no fault of the model: a lost rank, a lack of memory
        if is_loss(error) or isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        cause = error
    raise ModelError(
        f"{type(model.module).__name__} cannot compute log-probabilities: {type(cause).__name__}: {cause}",
        hint="its config.json does not fit its class in transformers, or it needs a library that is not installed",
    ) from cause
