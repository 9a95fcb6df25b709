"""AdamW on this rank's rows of named parameters, and what of it a checkpoint keeps.

    adamw                       two float32 moments, 8 bytes a parameter
    adamw, optimizer_offload    the same in host memory
    adamw_8bit                  both in 8 bits with a scale per 256 of them (Dettmers et al., arXiv 2110.02861), by
                                bitsandbytes; vectors and small matrices keep float32

All of the state exists from the start, so that loading it is copying. The weights stay float32 in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from learner.config import TrainingConfig
from learner.parallel.sharding import SavedRows, copy_to_shard, local_shard, sharded_like
from learner.recipes import RECIPES
from learner.training.offloaded_adamw import OffloadedAdamW
from services.errors import ConfigError

EPSILON = 1e-8

CONSTANT = ("qmap1", "qmap2")
"""In bitsandbytes' state: the 256 values that 8 bits stand for."""
BLOCK = 256
"""Moments that share a scale in 8 bits: consecutive elements of a tensor."""
SMALLEST_8BIT = 4096
"""Elements of a matrix from which on its moments are in 8 bits."""


class Optimizer:
    """Owns the moments of the parameters; their gradients are where backward left them."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], config: TrainingConfig) -> None:
        self._parameters = parameters
        self._rows = {name: _rows_of(p) for name, p in parameters.items()}
        settings = {
            "lr": config.learning_rate,
            "betas": RECIPES[config.recipe].phase(config.data).betas,
            "eps": EPSILON,
            "weight_decay": config.weight_decay,
        }
        in_8bit = {name for name, p in parameters.items() if config.optimizer == "adamw_8bit" and _suits_8bit(p)}
        exact = [rows for name, rows in self._rows.items() if name not in in_8bit]
        self._torch: list[torch.optim.Optimizer] = []
        if exact:
            self._torch.append((OffloadedAdamW if config.optimizer_offload else _adamw)(exact, settings))
        if in_8bit:
            for name in in_8bit:
                _check_blocks(name, parameters[name])
            self._torch.append(_adamw_8bit([self._rows[name] for name in self._rows if name in in_8bit], settings))
        elif config.optimizer == "adamw_8bit":
            _import_bitsandbytes()

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self._torch[0].param_groups[0]["lr"])

    def clear_gradients(self) -> None:
        """Let go of them."""
        for p in [*self._parameters.values(), *self._rows.values()]:
            p.grad = None

    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients."""
        for name, p in self._parameters.items():
            self._rows[name].grad = None if p.grad is None else local_shard(p.grad)
        for optimizer in self._torch:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`KEY.PARAMETER` -> tensor; moments are the live ones, of which this rank may hold some rows."""
        for optimizer in self._torch:
            if isinstance(optimizer, OffloadedAdamW):
                optimizer.synchronize()
        return {f"{key}.{name}": value for name, key, value in self._state()}

    def _state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(parameter, key, tensor) of all that a checkpoint keeps."""
        for name, p in self._parameters.items():
            state = self._state_of(name)
            for key in sorted(state):  # the same order on every rank
                value = state[key]
                if key not in CONSTANT:
                    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                    yield name, key, tensor if tensor.ndim == 0 else sharded_like(p, tensor)

    def _state_of(self, name: str) -> dict[str, Any]:
        rows = self._rows[name]
        (state,) = (optimizer.state[rows] for optimizer in self._torch if rows in optimizer.state)
        return state  # type: ignore[no-any-return]

    def load_state_dict(self, saved: Mapping[str, SavedRows]) -> None:
        """Copy a state of the same names and shapes."""
        for name, key, tensor in self._state():
            state = self._state_of(name)
            if isinstance(state[key], torch.Tensor):
                copy_to_shard(tensor, saved[f"{key}.{name}"])
            else:
                state[key] = int(saved[f"{key}.{name}"][...])


def _rows_of(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's rows as a parameter of their own that shares their memory; the parameter itself if it is whole."""
    rows = local_shard(parameter)
    return parameter if rows is parameter else torch.nn.Parameter(rows.detach())


def _adamw(parameters: list[torch.Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters, fused=True, **settings)  # fused: no copies of weights and moments
    for p in parameters:
        moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.zeros((), device=p.device)} | moments
    return optimizer


def _suits_8bit(parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and parameter.numel() >= SMALLEST_8BIT


def _check_blocks(name: str, parameter: torch.Tensor) -> None:
    """Ranks share no block of moments, so that their number may change; ConfigError where they would have to."""
    rows = local_shard(parameter)
    if rows is parameter or rows.shape[0] == parameter.shape[0]:
        return
    ranks = parameter.shape[0] / max(rows.shape[0], 1)
    if not ranks.is_integer() or rows.numel() % BLOCK:
        raise ConfigError(
            f"training.optimizer = adamw_8bit: {name} has {parameter.shape[0]} rows of "
            f"{parameter.numel() // parameter.shape[0]}, of which this rank holds {rows.shape[0]}, not an equal share "
            f"in whole blocks of {BLOCK} elements",
            hint="choose training.ranks as a power of two, or training.optimizer = adamw",
        )


def _import_bitsandbytes() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "training.optimizer is adamw_8bit and bitsandbytes is not installed", hint="pip install 'sept[adam8bit]'"
        ) from error
    return AdamW8bit


def _adamw_8bit(parameters: list[torch.Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    optimizer: Any = _import_bitsandbytes()(parameters, min_8bit_size=0, **settings)
    for index, p in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], p, 0, index)
    made: torch.optim.Optimizer = optimizer
    return made
