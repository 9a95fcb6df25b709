"""Which activations of a decoder layer wait for the backward pass; the others are computed again. Knows no model.

    off     all of them
    light   what matrix products and attention gave: about half; what lies between is cheap to compute again
    full    the layer's input only: next to nothing, for a second forward pass

None of the three changes a bit of the gradient on CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from learner.config import Recompute
from learner.model import attention, onednn_linear

COSTLY = [*onednn_linear.KERNELS, *attention.KERNELS]
"""Operators that `light` does not run twice."""


def recompute(module: PreTrainedModel, how: Recompute) -> None:
    """Make the module's decoder layers keep that much in training."""
    if how == "off":
        return
    # Nothing in a layer is random, so no state of random numbers has to be kept.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if how == "light":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, COSTLY)
    module.gradient_checkpointing_enable(settings)
