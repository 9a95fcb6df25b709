"""The same model in transformers' own form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.contracts import Rollout


def plain_model(folder: Path) -> PreTrainedModel:
    """The same weights in transformers' own eager form."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model


def own_logits(model: Any, rollout: Rollout) -> torch.Tensor:
    """[R, V] of transformers' forward at the places that predict the response."""
    ids = torch.tensor(np.concatenate([rollout.prompt_tokens, rollout.response_tokens]), dtype=torch.int64)
    logits: torch.Tensor = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return logits[rollout.prompt_tokens.size - 1 :]
