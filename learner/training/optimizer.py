"""AdamW on named parameters, and what of it a checkpoint keeps.

    adamw         two float32 moments, 8 bytes a parameter
    adamw_8bit    both in 8 bits with a scale per 256 of them (Dettmers et al., arXiv 2110.02861), by bitsandbytes

All of the state exists from the start, so that loading it is copying. The weights stay float32 in either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from learner.config import TrainingConfig
from learner.parallel.sharding import SavedRows, copy_to_shard
from learner.recipes import RECIPES
from services.errors import ConfigError

EPSILON = 1e-8

CONSTANT = ("qmap1", "qmap2")
"""In bitsandbytes' state: the 256 values that 8 bits stand for."""


class Optimizer:
    """Owns the moments of the parameters; their gradients are where backward left them."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], config: TrainingConfig) -> None:
        self._parameters = parameters
        betas = RECIPES[config.recipe].phase(config.data).betas
        make = _adamw if config.optimizer == "adamw" else _adamw_8bit
        self._torch = make(
            list(parameters.values()),
            {"lr": config.learning_rate, "betas": betas, "eps": EPSILON, "weight_decay": config.weight_decay},
        )

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self._torch.param_groups[0]["lr"])

    def clear_gradients(self) -> None:
        """Let go of them."""
        self._torch.zero_grad()

    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients."""
        for group in self._torch.param_groups:
            group["lr"] = learning_rate
        self._torch.step()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`KEY.PARAMETER` -> tensor; moments are the live ones, of which this rank may hold some rows."""
        return {
            f"{key}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, p in self._parameters.items()
            for key, value in self._torch.state[p].items()
            if key not in CONSTANT
        }

    def load_state_dict(self, saved: Mapping[str, SavedRows]) -> None:
        """Copy a state of the same names and shapes."""
        for name, p in self._parameters.items():
            state = self._torch.state[p]
            for key in state.keys() - set(CONSTANT):
                if isinstance(state[key], torch.Tensor):
                    copy_to_shard(state[key], saved[f"{key}.{name}"])
                else:
                    state[key] = int(saved[f"{key}.{name}"][...])


def _adamw(parameters: list[torch.Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters, fused=True, **settings)  # fused: no copies of weights and moments
    for p in parameters:
        moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.zeros((), device=p.device)} | moments
    return optimizer


def _adamw_8bit(parameters: list[torch.Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "training.optimizer is adamw_8bit and bitsandbytes is not installed", hint="pip install 'sept[adam8bit]'"
        ) from error
    optimizer: Any = AdamW8bit(parameters, **settings)
    for index, p in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], p, 0, index)
    made: torch.optim.Optimizer = optimizer
    return made
