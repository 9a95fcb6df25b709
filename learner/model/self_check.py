"""Checks a loaded model: its packed log-probabilities must be those of its own, ordinary forward.

Legend of shapes: S sequences, T tokens, R response tokens, V vocabulary.
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

TOLERANCE = 1e-3
"""Largest difference in a float32 log-probability that rounding explains."""


def check_model(model: TrainedModel) -> None:
    """Raise ModelError unless packed log-probabilities equal those of the model's own forward. Every rank calls it."""
    vocabulary = model.loss_module.vocabulary
    tokens = (np.arange(1, 24, dtype=np.int64) * 7919 % vocabulary).astype(np.int32)
    sequences = [Sequence(tokens[:5], tokens[5:12]), Sequence(tokens[12:13], tokens[13:])]
    batch = pack_sequences(sequences).to(model.device)
    model.module.train(False)
    with torch.no_grad(), model.exact_weights():
        packed = model.token_losses(batch, nll, Targets(batch.targets), tau=1.0).log_probs
        model.module.set_attn_implementation("eager")
        alone = _own_log_probs(model, sequences)
        model.module.set_attn_implementation(PACKED_ATTENTION)
    difference = float((packed - alone).abs().max())
    if not difference <= TOLERANCE:
        raise ModelError(
            f"packed log-probabilities of {type(model.module).__name__} differ from its own by {difference:.2g}, "
            f"more than {TOLERANCE:g}",
            hint="its attention or its last layer is not the usual one; this learner cannot train it",
        )


def _own_log_probs(model: TrainedModel, sequences: list[Sequence]) -> torch.Tensor:
    """[R] log-probabilities of the responses by the model's ordinary forward, which gathers the weights once for all.

    Attention is causal, so what pads a sequence on the right changes nothing before it.
    """
    rows = [torch.from_numpy(np.concatenate([s.prompt_tokens, s.response_tokens]).astype(np.int64)) for s in sequences]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    log_probs_STV = model.loss_module.own_logits(tokens[:, :-1]).float().log_softmax(-1)
    log_probs_ST = log_probs_STV.gather(-1, tokens[:, 1:, None])[..., 0]
    kept = [row[s.prompt_tokens.size - 1 : s.fed_tokens] for row, s in zip(log_probs_ST, sequences, strict=True)]
    return torch.cat(kept)
