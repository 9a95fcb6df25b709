"""A run on a real cluster of several nodes: it scales with its queue, and loses nothing with its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy.operate.client import RunClient
from deploy.ray_cluster.app import APP, STORE, build_application, source_env
from services.contracts import StatusSnapshot
from tests.support.ray_runs import RayWorld
from tests.support.watching import alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray leaves sockets and files for the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STARTS_S = 180
SCALES_S = 90
RECOVERS_S = 180


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing, one node with the run's folder and a place for the learner."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def rounds_on(world: RayWorld, count: int) -> float:
    """Seconds until the run answers and has gone on for so many rounds."""
    seen: list[int] = []

    def far_enough(now: StatusSnapshot) -> bool:
        seen.append(now.round)
        return now.round >= seen[0] + count

    return world.until(f"{count} more rounds", far_enough, RECOVERS_S)


def generators(count: int) -> Any:
    def enough(status: StatusSnapshot) -> bool:
        return alive(status) == count

    return enough


def test_it_follows_the_queue_and_survives_the_loss_of_nodes(tmp_path: Path, redis_url: str, cluster: Cluster) -> None:
    with_store = cluster.add_node(num_cpus=1, resources={STORE: 1})
    doomed = cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, runtime_env=source_env(), log_to_driver=False)
    world = RayWorld.make(tmp_path, redis_url, rounds=400, response_tokens=96)
    serve.start(http_options={"host": "127.0.0.1", "port": world.port})
    application = build_application(
        world.settings(), world.options(most=3, downscale_after_s=3.0), ray.cluster_resources(), nodes=4
    )
    serve.run(application, name=APP, route_prefix="/")

    world.until("first rounds", lambda status: status.round >= 1, STARTS_S)
    say(f"1 -> 3 generators: {world.until('3 generators', generators(3), SCALES_S):.1f} s after the first round")
    world.tell(RunClient.pause)
    say(f"3 -> 1: {world.until('1 generator', generators(1), SCALES_S):.1f} s after the pause")
    world.tell(RunClient.resume)
    say(f"1 -> 3: {world.until('3 generators', generators(3), SCALES_S):.1f} s after going on")

    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=2)
    say(f"a node with generators was killed: 3 rounds on after {rounds_on(world, 3):.1f} s")
    say(f"3 generators again after {world.until('3 generators', generators(3), RECOVERS_S):.1f} s")

    cluster.add_node(num_cpus=1, resources={STORE: 1})
    cluster.remove_node(with_store, allow_graceful=False)
    say(f"the learner's node was killed: 3 rounds on after {rounds_on(world, 3):.1f} s")

    status = world.status()
    assert status is not None and status.dead_letters == 0
    world.tell(RunClient.pause)
    done = world.found()
    assert done == world.expected()[: len(done)]
    say(f"{len(done)} rounds, every one once, with the tasks, order and tau_s of any placement")


def say(text: str) -> None:
    """For the reader of `make test-ray`, which does not capture."""
    os.write(1, f"\n    {text}".encode())
