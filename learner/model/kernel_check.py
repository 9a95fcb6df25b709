"""Checks the kernels that train: where the forward computes in 16 bits, the packed one must be as near to the exact
log-probabilities as the model's own forward in 16 bits is.

Rounding alone makes both differ from float32: each layer rounds its output to 8 bits of significand, and the roundings
of a few dozen layers and the head add up. How much depends on the model, so it is measured: the root mean square error
of the model's own forward, without packing, fused kernels of attention or window kernels. The packed forward rounds in
about as many places, so its error is about as large, and independent of it. A wrong mask, window, scale or grouping of
heads changes log-probabilities by whole units instead.
"""

from __future__ import annotations

import numpy as np
import torch

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.attention import PACKED_ATTENTION
from learner.model.packing import Sequence, pack_sequences
from learner.model.trained_model import TrainedModel
from services.errors import ModelError

SLACK = 3.0
"""Times the own forward's error: two samples of one error's size over hundreds of tokens differ by less than a half;
the rest is for kernels that keep fewer bits between their parts."""
FLOOR = 0.02
"""Of the tolerance, for models so small that their own forward hardly rounds: 2^-8 of a log-probability of 5."""
LENGTHS = (97, 33, 200)
"""Tokens of the sequences, besides one that is longer than a sliding window."""
BEYOND_WINDOW = 64
LONGEST = 4096
"""Tokens of the longest sequence: a window that is larger is not seen, as its own forward takes the square of it."""
STRIDE = 7919
"""A prime: the tokens step through the whole vocabulary."""


def check_kernels(model: TrainedModel) -> None:
    """Raise ModelError unless packed log-probabilities in `compute_dtype` are as near to exact ones as the model's own.

    Every rank calls it. Nothing to do where the forward computes in float32.
    """
    if model.compute_dtype == torch.float32:
        return
    sequences = _sequences(model)
    batch = pack_sequences(sequences).to(model.device)
    model.module.train(False)
    with torch.no_grad():
        packed = model.token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs
        model.module.set_attn_implementation("eager")
        own = _own_log_probs(model, sequences)
        with model.exact_weights():
            exact = _own_log_probs(model, sequences)
        model.module.set_attn_implementation(PACKED_ATTENTION)
    error, own_error = (float((found - exact).square().mean().sqrt()) for found in (packed, own))
    limit = max(SLACK * own_error, FLOOR)
    if not error <= limit:
        raise ModelError(
            f"the kernels that train {type(model.module).__name__} on {model.device} compute log-probabilities that "
            f"are off by {error:.2g} (root mean square), more than {limit:.2g}; its own forward in "
            f"{model.compute_dtype} is off by {own_error:.2g}",
            hint="report it with the versions of torch and the driver; training.device = cpu trains it exactly",
        )


def _sequences(model: TrainedModel) -> list[Sequence]:
    """Of lengths that no kernel divides evenly, one of them longer than the model's sliding window."""
    window = getattr(model.module.config.get_text_config(), "sliding_window", None) or 0
    lengths = [*LENGTHS, min(window + BEYOND_WINDOW, LONGEST)]
    tokens = (np.arange(1, 1 + sum(lengths), dtype=np.int64) * STRIDE % model.loss_module.vocabulary).astype(np.int32)
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    return [Sequence(part[:1], part[1:]) for part in parts]


def _own_log_probs(model: TrainedModel, sequences: list[Sequence]) -> torch.Tensor:
    """Log-probabilities of all responses by the model's ordinary forward, one sequence at a time."""
    found = []
    for sequence in sequences:
        row = np.concatenate([sequence.prompt_tokens, sequence.response_tokens]).astype(np.int64)
        tokens = torch.from_numpy(row).to(model.device)[None]
        log_probs = model.loss_module.own_logits(tokens[:, :-1])[0].float().log_softmax(-1)
        found.append(log_probs.gather(-1, tokens[0, 1:, None])[:, 0])
    return torch.cat(found)
