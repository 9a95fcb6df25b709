"""Whether a run fits into a cluster: what is refused, where it would have been placed, and with what remedy."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from deploy.load_settings import load
from deploy.ray_cluster.cluster_memory import RayNode, check_cluster
from learner.memory.machine import HostMemory
from learner.memory.model_shape import shape_of_config
from services.errors import ConfigError
from tests.support.model_configs import CONFIGS

GIB = 1 << 30


def node(address: str, *, gpus: int = 0, gpu: float | None = None, host: float = 2000) -> RayNode:
    size = HostMemory(limit=int(host * GIB), available=int(host * GIB))
    return RayNode(address, size, gpus, None if gpu is None else int(gpu * GIB))


def refusal(name: str | None, nodes: list[RayNode], *sets: str, generators: int = 1) -> str:
    """With its remedy; empty when the run is let through."""
    settings = load(None, sets, environ={})
    shape = None if name is None else shape_of_config(CONFIGS[name])
    try:
        check_cluster(shape, settings, nodes, generators=generators, gpus=any(each.gpus for each in nodes))
    except ConfigError as error:
        return str(error)
    return ""


def test_what_fits_is_let_through() -> None:
    assert refusal("Qwen2.5-Math-7B", [node("a", gpus=8, gpu=80)], "training.ranks=4", generators=4) == ""
    two = [node("a", gpus=4, gpu=80), node("b", gpus=1, gpu=80)]
    assert refusal("Qwen2.5-Math-7B", two, "training.ranks=4") == ""
    assert refusal("Qwen2.5-0.5B", [node("a", host=64), node("b", host=8)], "training.micro_batch_tokens=4096") == ""


def test_too_few_gpus_in_all_are_refused_since_none_is_shared() -> None:
    assert refusal("Qwen2.5-0.5B", [node("a", gpus=2, gpu=80)]) == ""
    one = refusal("Qwen2.5-0.5B", [node("a", gpus=1, gpu=80)])
    assert "the cluster has 1 GPUs, and the run needs 2 at least" in one
    pairs = refusal(None, [node("a", gpus=7)], "training.ranks=2", "generator.tensor_parallel=2", generators=3)
    assert "the learner 2, each of 3 generators 2" in pairs


def test_a_part_that_no_node_has_the_gpus_for_is_refused() -> None:
    two = [node("a", gpus=4, gpu=80), node("b", gpus=4, gpu=80)]
    said = refusal("Qwen2.5-Math-7B", two, "training.ranks=6")
    assert "the learner needs 6 GPUs on one node, and no node of the cluster has more than 4" in said
    said = refusal("Qwen2.5-Math-7B", two, "training.ranks=3", "generator.tensor_parallel=5")
    assert "a generator needs 5 GPUs on one node" in said
    three = [*two, node("c", gpus=1, gpu=80)]
    assert refusal("Qwen2.5-Math-7B", three, "training.ranks=8", "training.nodes=2") == ""


def test_a_learner_that_fits_on_no_node_is_refused_with_what_would_fit() -> None:
    said = refusal("Qwen2.5-Math-7B", [node("a", gpus=8, gpu=40), node("b", gpus=8, gpu=80)])
    assert "on b, the node of the cluster with the most room: the learner needs" in said
    assert "there are 80.0 GiB" in said
    assert "training.ranks = " in said


def test_on_one_node_the_generators_leave_the_learner_fewer_gpus_to_recommend() -> None:
    said = refusal("Qwen2.5-Math-7B", [node("a", gpus=4, gpu=40)], generators=3)
    assert "the learner needs" in said
    assert "training.ranks" not in said


def test_an_engine_that_fits_on_no_node_is_refused() -> None:
    nodes = [node("a", gpus=16, gpu=64), node("b", gpus=1, gpu=64)]
    said = refusal("Qwen2.5-32B", nodes, "training.ranks=16")
    assert "KV cache has 0.00 GiB" in said
    assert "raise generator.tensor_parallel" in said


def test_without_gpus_parts_of_one_node_share_its_memory_and_those_of_several_do_not() -> None:
    few = "training.micro_batch_tokens=4096"
    assert "on a, the node" in refusal("Qwen2.5-0.5B", [node("a", host=15)], few)
    assert refusal("Qwen2.5-0.5B", [node("a", host=15), node("b", host=15)], few) == ""
    assert "GiB of host memory" in refusal("Qwen2.5-0.5B", [node("a", host=10), node("b", host=10)], few)


def test_memory_that_nobody_tells_of_is_not_checked() -> None:
    assert refusal("Qwen2.5-Math-7B", [node("a", gpus=2)]) == ""
    assert refusal(None, [node("a", gpus=2, gpu=1)]) == ""
