"""What makes a learner fit into its devices' memory: recomputation chosen, the smallest change of settings found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from learner.config import LearnerSettings, Recomputation
from learner.memory.model_shape import ModelShape
from learner.memory.rank_memory import Device, RankMemory, estimate_rank
from services.errors import ConfigError

MODES: tuple[Recomputation, ...] = ("off", "light", "full")
"""Each needs less memory than the one before, and more time."""
GIB = 1 << 30
SHOWN_BYTES = GIB // 10
FEWEST_TOKENS = 1024
"""A micro-batch of fewer keeps no device busy."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a learner's ranks have."""

    device: Device
    rank_bytes: int
    """Of each rank on a device of its own; on CPU of all ranks together."""
    devices: int = 1
    """Most ranks that the machine has devices for."""

    def for_rank(self, ranks: int) -> int:
        """Bytes of one of so many ranks."""
        return self.rank_bytes // ranks if self.device == "cpu" else self.rank_bytes


def recomputation_of(shape: ModelShape, settings: LearnerSettings, room: Room) -> Recomputation:
    """training.gradient_checkpointing; for auto the fastest that fits, or full when none does."""
    chosen = settings.training.gradient_checkpointing
    if chosen != "auto":
        return chosen
    fitting = (mode for mode in MODES if _estimate(shape, settings, room, mode).total <= _room_of(settings, room))
    return next(fitting, "full")


def estimate(shape: ModelShape, settings: LearnerSettings, room: Room) -> RankMemory:
    """What a rank needs, with the recomputation that it would choose."""
    return _estimate(shape, settings, room, recomputation_of(shape, settings, room))


def fits(shape: ModelShape, settings: LearnerSettings, room: Room) -> bool:
    """Whether the ranks have what they need."""
    return estimate(shape, settings, room).total <= _room_of(settings, room)


def check_fits(shape: ModelShape, settings: LearnerSettings, room: Room) -> None:
    """ConfigError when the ranks do not have what they need: how much it is, and what would make it fit."""
    needed, ranks = estimate(shape, settings, room), settings.training.ranks
    has = _room_of(settings, room)
    if needed.total <= has:
        return
    each = "the learner" if ranks == 1 else f"each of the learner's {ranks} ranks"
    where = "GPU" if room.device == "cuda" else "host"
    parts = {field.name: getattr(needed, field.name) for field in fields(needed)}
    sizes = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size >= SHOWN_BYTES)
    raise ConfigError(
        f"{each} needs {needed.total / GIB:.1f} GiB of {where} memory, and there are {has / GIB:.1f} GiB ({sizes})",
        hint=_remedy(smallest_change(shape, settings, room)),
    )


def _remedy(change: dict[str, Any]) -> str:
    if not change:
        return (
            "no change of [training] makes it fit: train adapters (lora.rank), or a smaller model, or on larger devices"
        )
    return "this would fit: " + ", ".join(f"{key} = {str(value).lower()}" for key, value in change.items())


def smallest_change(shape: ModelShape, settings: LearnerSettings, room: Room) -> dict[str, Any]:
    """Setting -> value: the fewest changes that make it fit, of those the one that costs least; empty when none does.

    Tried in this order: recompute more, more ranks, smaller micro-batches, moments in host memory, moments of 8 bits.
    """
    changes = sorted(_changes(settings, room), key=len)  # stable: by cost among those of one length
    for change in changes:
        if fits(shape, with_training(settings, change), room):
            return {f"training.{key}": value for key, value in change.items()}
    return {}


def with_training(settings: LearnerSettings, change: dict[str, Any]) -> LearnerSettings:
    """The settings with other values in [training]."""
    return settings.model_copy(update={"training": settings.training.model_copy(update=change)})


def _changes(settings: LearnerSettings, room: Room) -> Iterator[dict[str, Any]]:
    training = settings.training
    mode = training.gradient_checkpointing
    modes = [None, *(() if mode == "auto" else MODES[MODES.index(mode) + 1 :])]
    more_ranks = room.device == "cuda" and training.nodes == 1
    ranks = [None, *range(training.ranks + 1, room.devices + 1)] if more_ranks else [None]
    tokens = [None, *_halves(training.micro_batch_tokens, max(FEWEST_TOKENS, settings.longest_sequence))]
    for moments, token, rank, more in product(list(_moments(settings, room)), tokens, ranks, modes):
        change = {"gradient_checkpointing": more, "ranks": rank, "micro_batch_tokens": token}
        yield {key: value for key, value in change.items() if value is not None} | moments


def _moments(settings: LearnerSettings, room: Room) -> Iterator[dict[str, Any]]:
    """Where the optimizer's moments could be and in what form, other than as they are."""
    training = settings.training
    yield {}
    if training.optimizer == "adamw" and not training.optimizer_offload:
        if room.device == "cuda":
            yield {"optimizer_offload": True}
        yield {"optimizer": "adamw_8bit"}


def _halves(tokens: int, least: int) -> Iterator[int]:
    while (tokens := tokens // 2) >= least:
        yield tokens


def _estimate(shape: ModelShape, settings: LearnerSettings, room: Room, mode: Recomputation) -> RankMemory:
    return estimate_rank(shape, settings, device=room.device, recomputation=mode)


def _room_of(settings: LearnerSettings, room: Room) -> int:
    return room.for_rank(settings.training.ranks_per_node)
