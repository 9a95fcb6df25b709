"""Which processors and GPUs each part of a local run gets, from what the machine has.

GPUs are never given twice: the learner has the first ones, one for each rank, and each generator `tensor_parallel` of
the others. The one exception is a machine with a single GPU, which learner and generator share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.parallel import launch_env
from services.errors import ConfigError

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environ: Mapping[str, str] | None = None, gpus: Path = NVIDIA_GPUS) -> list[str]:
    """Names of the GPUs this user may use, found without loading a driver."""
    chosen = (os.environ if environ is None else environ).get(VISIBLE)
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(list(gpus.iterdir())))] if gpus.is_dir() else []


@dataclass(frozen=True, slots=True)
class Placement:
    """Who computes where."""

    learner: tuple[str, ...]
    """GPUs of the learner, one for each rank; none: it computes on CPU, or it is an evaluator."""
    generators: tuple[tuple[str, ...], ...] | None
    """GPUs of each generator that there can be; None: engines compute on CPU, and there is no limit."""
    any_gpus: bool
    """Whether the machine has GPUs at all."""
    most_ranks: int
    """Ranks that the learner could have beside the generators that there are at first."""
    threads: int
    """Of each part that computes on CPU."""

    @property
    def shared(self) -> bool:
        """Whether learner and generator compute on the same GPU."""
        return any(gpu in self.learner for group in self.generators or () for gpu in group)

    @property
    def generators_limit(self) -> int | None:
        """Most generators that there can be; None: as many as anybody wants."""
        return None if self.generators is None else len(self.generators)

    def learner_env(self) -> dict[str, str]:
        """Environment of the learner or evaluator."""
        if self.learner:
            return {VISIBLE: ",".join(self.learner)}
        return {"OMP_NUM_THREADS": str(self.threads), **launch_env.ON_CPU, **self._without_gpus()}

    def generator_env(self, index: int) -> dict[str, str]:
        """Environment of the generator of that number.

        On CPU every engine would pin its threads to the same first cores by itself, so pinning is off.
        """
        if self.generators is not None:
            return {VISIBLE: ",".join(self.generators[index])}
        cpu = {"OMP_NUM_THREADS": str(self.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return cpu | self._without_gpus()

    def _without_gpus(self) -> dict[str, str]:
        return {VISIBLE: ""} if self.any_gpus else {}


def place(gpus: Sequence[str], cores: int, *, ranks: int, generators: int, tensor_parallel: int) -> Placement:
    """Share out the machine; ConfigError when the GPUs do not suffice.

    `ranks`: of a learner on GPUs, 0 when it computes on CPU or the run has an evaluator in its place.
    `generators`: how many there are at first. `tensor_parallel`: GPUs of each, 0 when its engine needs none.
    """
    gpus = list(dict.fromkeys(gpus))
    most_ranks = max(ranks, len(gpus) - generators * tensor_parallel)
    threads = max(1, cores // (max(1, generators) + 1))
    if not gpus:
        return Placement((), None, any_gpus=False, most_ranks=0, threads=threads)
    if ranks > len(gpus):
        raise ConfigError(
            f"training.ranks is {ranks}, and the learner needs a GPU for each of them: this machine has {len(gpus)}",
            hint=f"set training.ranks to {len(gpus)} at most, or train on more machines",
        )
    left = gpus[ranks:]
    if len(gpus) == 1 and ranks == 1:
        left = gpus  # shared
    if not tensor_parallel:
        return Placement(tuple(gpus[:ranks]), None, any_gpus=True, most_ranks=most_ranks, threads=threads)
    groups = [tuple(left[at : at + tensor_parallel]) for at in range(0, len(left), tensor_parallel)]
    groups = [group for group in groups if len(group) == tensor_parallel]
    if generators > len(groups):
        raise ConfigError(
            _too_few(gpus, left, ranks, generators, tensor_parallel), hint=_remedy(len(left), len(groups))
        )
    return Placement(tuple(gpus[:ranks]), tuple(groups), any_gpus=True, most_ranks=most_ranks, threads=threads)


def _too_few(gpus: Sequence[str], left: Sequence[str], ranks: int, generators: int, tensor_parallel: int) -> str:
    of_each = f" of {tensor_parallel} GPUs each" if tensor_parallel > 1 else ""
    rest = f"the learner takes {ranks} of {len(gpus)}" if ranks else f"there are {len(gpus)}"
    if len(gpus) == len(left) == ranks == 1:
        rest = "there is one, which the learner and one generator share"
    return f"generator.count is {generators}{of_each}, and the GPUs do not suffice: {rest}"


def _remedy(left: int, groups: int) -> str:
    if groups:
        return f"set generator.count to {groups} at most"
    return f"lower generator.tensor_parallel to {left}" if left else "lower training.ranks, so that GPUs are left"
