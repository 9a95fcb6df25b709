"""Whether a run fits into a Ray cluster, asked by the driver before it submits anything.

Every node tells of its memory, in a task that claims nothing. Learner and generator are then tried one by one on the
node with the most room, by the estimate that `sept run` uses: what does not fit there fits nowhere. On Ray no two
parts share a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.placement import Placement
from deploy.run_memory import MachineMemory, plan_memory
from deploy.settings import Settings
from learner.memory.machine import HostMemory, gpu_sizes, host_memory
from learner.memory.model_shape import ModelShape
from services.errors import ConfigError, UnavailableError

ANSWERS_WITHIN_S = 120.0
"""For a process of each node to start and to answer."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """What a node of the cluster has."""

    address: str
    host: HostMemory
    gpus: int
    """That Ray gives out there."""
    gpu_bytes: int | None
    """Memory of the smallest of them; None where the driver does not tell."""

    @property
    def room(self) -> tuple[int, int]:
        """What nodes are compared by: memory of a GPU, then of the host."""
        return self.gpu_bytes or 0, self.host.limit


def ask_nodes() -> list[RayNode]:
    """All living nodes; UnavailableError when one does not answer."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    tell: Any = ray.remote(_tell)
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    answers = [tell.options(num_cpus=0, scheduling_strategy=strategy).remote() for strategy in pinned]
    try:
        told = ray.get(answers, timeout=ANSWERS_WITHIN_S)
    except ray.exceptions.RayError as error:
        raise UnavailableError(
            f"a node of the cluster does not say what memory it has: {type(error).__name__}: {error}",
            hint="see `ray status`, and that every node has this release",
        ) from error
    return [
        RayNode(node["NodeManagerAddress"], host, int(node["Resources"].get("GPU", 0)), gpu_bytes)
        for node, (host, gpu_bytes) in zip(alive, told, strict=True)
    ]


def _tell() -> tuple[HostMemory, int | None]:
    return host_memory(), min(gpu_sizes().values(), default=None)


def check_cluster(
    shape: ModelShape | None, settings: Settings, nodes: Sequence[RayNode], *, generators: int, gpus: bool
) -> None:
    """ConfigError when the cluster's GPUs do not suffice, or a part fits on none of its nodes.

    `generators`: the fewest that there are to be. `gpus`: whether the parts get GPUs. `shape` None: the model's sizes
    are not known yet, and memory is not checked.
    """
    of_learner = settings.training.ranks_per_node if gpus else 0
    of_generator = settings.generator.tensor_parallel if gpus else 0
    if gpus:
        _check_gpus(settings, nodes, generators)
    if shape is None:
        return
    beside = generators if len(nodes) == 1 else 0  # else they may be on other nodes
    learner_node = max((node for node in nodes if node.gpus >= of_learner), key=lambda node: node.room)
    ranks = () if settings.training.device == "cpu" else _names(0, of_learner)
    groups = [_names(of_learner + index * of_generator, of_generator) for index in range(max(1, beside))]
    placement = Placement(
        learner=ranks,
        generators=tuple(groups) if of_generator else None,
        any_gpus=gpus,
        most_ranks=learner_node.gpus - beside * of_generator,
        threads=1,
    )
    _check_node(learner_node, shape, settings, placement, generators=beside, leader="learner")
    generator_node = max((node for node in nodes if node.gpus >= of_generator), key=lambda node: node.room)
    alone = replace(placement, learner=(), generators=tuple(groups[:1]) if of_generator else None)
    _check_node(generator_node, shape, settings, alone, generators=1, leader="evaluator")


def _names(first: int, count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(first, first + count))


def _check_node(
    node: RayNode, shape: ModelShape, settings: Settings, placement: Placement, *, generators: int, leader: str
) -> None:
    """As `sept run` checks its machine, with so many generators on it; an evaluator takes no room."""
    named = [*placement.learner, *(gpu for group in placement.generators or () for gpu in group)]
    machine = MachineMemory(node.host, {} if node.gpu_bytes is None else dict.fromkeys(named, node.gpu_bytes))
    here = settings.model_copy(update={"generator": settings.generator.model_copy(update={"count": generators})})
    try:
        plan_memory(shape, here, placement, machine, leader=leader)
    except ConfigError as error:
        which = f"on {node.address}, the node of the cluster with the most room: "
        raise ConfigError(which + error.message, hint=error.hint) from error


def _check_gpus(settings: Settings, nodes: Sequence[RayNode], generators: int) -> None:
    training, tensor_parallel = settings.training, settings.generator.tensor_parallel
    total, most = sum(node.gpus for node in nodes), max(node.gpus for node in nodes)
    needed = training.ranks + generators * tensor_parallel
    if needed > total:
        raise ConfigError(
            f"the cluster has {total} GPUs, and the run needs {needed} at least: the learner {training.ranks}, each of "
            f"{generators} generators {tensor_parallel}; on Ray no two parts share one",
            hint="add nodes, or lower training.ranks, generator.tensor_parallel or --min-generators",
        )
    for part, count, setting in (
        ("the learner", training.ranks_per_node, "training.ranks, or raise training.nodes"),
        ("a generator", tensor_parallel, "generator.tensor_parallel"),
    ):
        if count > most:
            raise ConfigError(
                f"{part} needs {count} GPUs on one node, and no node of the cluster has more than {most}",
                hint=f"lower {setting}",
            )
