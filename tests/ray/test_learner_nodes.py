"""A learner of two hosts on a real cluster: the curve of one rank, also when a host is lost in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import redis
from ray import serve
from ray.cluster_utils import Cluster

from deploy.ray_cluster.app import APP, STORE, build_application, source_env
from services.run_folder import RunFolder
from services.streams.connection import Keys
from tests.support import scripted_run
from tests.support.ray_runs import RayWorld

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray leaves sockets and files for the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROUNDS = 60
STARTS_S, ENDS_S = 300.0, 400.0
RESUMES_S = 60.0
NODES = ("training.ranks=4", "training.nodes=2")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def test_two_hosts_of_two_ranks_train_the_curve_of_one_rank_though_a_host_is_lost(
    tmp_path: Path, redis_url: str, cluster: Cluster
) -> None:
    cluster.add_node(num_cpus=3, resources={STORE: 1})  # node 0 of the learner, and both generators
    doomed = cluster.add_node(num_cpus=2)  # node 1 of the learner, perhaps with a generator
    ray.init(address=cluster.address, runtime_env=source_env(), log_to_driver=False)
    world = RayWorld.make(tmp_path, redis_url, rounds=ROUNDS, response_tokens=96, sets=NODES)
    serve.start(http_options={"host": "127.0.0.1", "port": world.port})
    application = build_application(
        world.settings(), world.options(most=2, least=2), ray.cluster_resources(), nodes=len(ray.nodes())
    )
    started_at = time.monotonic()
    serve.run(application, name=APP, route_prefix="/")
    world.until("first rounds", lambda status: status.round >= 3, STARTS_S)
    first_start_s = time.monotonic() - started_at

    run = RunFolder(tmp_path / "run")
    cluster.add_node(num_cpus=2)  # where the lost one is replaced
    lost_at = time.monotonic()
    cluster.remove_node(doomed, allow_graceful=False)  # kill -9 of its raylet
    rounds, rollouts = len(list(run.rounds())), rollouts_in(redis_url, run.run_id)
    most = rollouts
    while len(list(run.rounds())) < rounds + 2:
        assert time.monotonic() - lost_at < ENDS_S, (run.logs / "learner.log").read_text()[-5000:]
        most = max(most, rollouts_in(redis_url, run.run_id))
        time.sleep(0.1)
    took_s = time.monotonic() - lost_at
    say(f"a host of the learner was killed: two rounds on after {took_s:.1f} s; {most - rollouts} rollouts meanwhile")
    say(f"the first start took {first_start_s:.1f} s")
    assert took_s < max(RESUMES_S, first_start_s)  # on a busy machine

    world.until("end of the run", lambda status: status.state == "finished", ENDS_S)
    assert world.found() == world.expected()
    losses = scripted_run.losses_of(run.path)
    assert losses == pytest.approx(scripted_run.losses_of_one_rank(world.config, run.path), rel=1e-3)


def rollouts_in(redis_url: str, run_id: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        return int(client.xlen(Keys(run_id).rollouts))


def say(text: str) -> None:
    """For the reader of `make test-ray`, which does not capture."""
    os.write(1, f"\n    {text}".encode())
