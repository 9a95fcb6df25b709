"""Chooses which activations of a decoder layer are kept for the backward pass; the others are computed again.

    off     all of them
    light   outputs of matrix products and attention, about half; the others are cheap to compute again
    full    the layer's input only: almost nothing, at the cost of a second forward pass

The gradient is the same to the bit on CPU in all three.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from learner.config import Recomputation
from learner.model import attention
from learner.model.kernels import onednn_linear

SAVED_OPERATORS = [*onednn_linear.KERNELS, *attention.KERNELS]
"""Operators whose outputs `light` keeps."""


def checkpoint_activations(module: PreTrainedModel, mode: Recomputation) -> None:
    """Make the module's decoder layers keep in training what `mode` says."""
    if mode == "off":
        return
    # Nothing in a layer is random, so the state of the random number generator is not saved.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "light":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, SAVED_OPERATORS)
    module.gradient_checkpointing_enable(settings)
