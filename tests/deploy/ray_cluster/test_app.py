"""What is decided before anything starts on Ray: placement, numbers, refusals, the policy, agreement on the code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from deploy.load_settings import load
from deploy.ray_cluster.app import (
    STORE,
    Options,
    check_nodes,
    learner_placement,
    scaling,
    settings_for_ray,
    source_env,
    store_resource,
)
from deploy.ray_cluster.parts import RayRun
from deploy.ray_cluster.scaling import METRIC, QueuePolicy
from deploy.same_code import PACKAGES, code_digest
from deploy.settings import Settings
from services.errors import ConfigError

SECRETS = {"SEPT_REDIS__URL": "redis://:hush@redis:6379/0", "SEPT_SERVICES__TOKEN": "secret"}
NEEDED = ("model.path=m", "data.path=d")


def settings_of(*sets: str, environ: dict[str, str] = SECRETS) -> Settings:
    return load(None, [*NEEDED, *sets], environ=environ)


def options(**more: Any) -> Options:
    return Options(config=Path("run.toml"), **more)


@dataclass
class Seen:
    """What Serve shows a policy."""

    target_num_replicas: int
    aggregated_metrics: dict[str, dict[Any, float]] | None


@pytest.mark.parametrize(("open_requests", "generators"), [(0, 0), (1, 1), (64, 1), (65, 2), (640, 10)])
def test_as_many_generators_as_hold_all_open_requests(open_requests: float, generators: int) -> None:
    assert QueuePolicy(64)(Seen(3, {METRIC: {"a": 0.0, "b": open_requests}})) == (generators, {})


@pytest.mark.parametrize("metrics", [None, {}, {METRIC: {}}])
def test_nothing_changes_while_nobody_reports(metrics: dict[str, dict[Any, float]] | None) -> None:
    assert QueuePolicy(64)(Seen(3, metrics)) == (3, {})


def test_the_number_lies_between_what_is_given() -> None:
    found = scaling(settings_of("generator.count=5", "generator.max_in_flight=48"), options(min_generators=2))
    assert (found["min_replicas"], found["max_replicas"]) == (2, 5)
    assert found["policy"]["policy_kwargs"] == {"requests_per_generator": 48}
    with pytest.raises(ConfigError, match=r"max_generators \(1\) is less than min_generators \(2\)"):
        scaling(settings_of(), options(min_generators=2))


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_a_cluster_needs_redis_and_a_token(missing: str) -> None:
    environ = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(ConfigError, match=r"(redis\.url|services\.token) is not set"):
        settings_for_ray(settings_of(environ=environ), options())


def test_generators_reach_the_services_through_their_own_nodes_proxy() -> None:
    assert settings_for_ray(settings_of(), options(http_port=8123)).services.url == "http://127.0.0.1:8123"
    given = settings_of("services.url=https://sept.example")
    assert settings_for_ray(given, options()).services.url == "https://sept.example"


def test_on_several_nodes_one_must_say_that_it_has_the_folder() -> None:
    assert store_resource({"CPU": 4.0}, nodes=1) == {}
    assert list(store_resource({"CPU": 4.0, STORE: 1.0}, nodes=3)) == [STORE]
    with pytest.raises(ConfigError, match="none of the 3 nodes says that it has the run's folder"):
        store_resource({"CPU": 4.0}, nodes=3)


def test_the_learner_has_a_gpu_for_each_rank_where_the_folder_is() -> None:
    training, store = settings_of("training.ranks=4").training, {STORE: 0.001}
    assert learner_placement(training, store, "STRICT_SPREAD", gpus=True) == {
        "ray_actor_options": {"num_cpus": 0, "num_gpus": 4, "resources": store}
    }
    assert learner_placement(training, {}, "PACK", gpus=False)["ray_actor_options"]["num_gpus"] == 0


@pytest.mark.parametrize("strategy", ["STRICT_SPREAD", "PACK"])
def test_a_learner_of_several_nodes_has_a_bundle_for_each_and_its_own_actor_in_the_first(strategy: Any) -> None:
    training, store = settings_of("training.ranks=16", "training.nodes=2").training, {STORE: 0.001}
    placed = learner_placement(training, store, strategy, gpus=True)
    assert placed["placement_group_bundles"] == [{"GPU": 8.0, STORE: 0.001}, {"GPU": 8.0}]
    assert placed["placement_group_strategy"] == strategy
    assert placed["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 8, "resources": store}
    on_cpu = learner_placement(training, {}, strategy, gpus=False)
    assert all(0 < bundle["CPU"] < 0.01 for bundle in on_cpu["placement_group_bundles"])


def test_a_learner_of_more_nodes_than_there_are_is_refused() -> None:
    settings = settings_of("training.ranks=4", "training.nodes=4")
    check_nodes(settings, options(), nodes=4)
    check_nodes(settings, options(learner_strategy="PACK"), nodes=1)
    with pytest.raises(ConfigError, match=r"training\.nodes is 4, the cluster has 3 nodes"):
        check_nodes(settings, options(), nodes=3)


def test_a_node_with_other_code_is_refused_by_name() -> None:
    RayRun("", {}, code_digest()).check_code()
    with pytest.raises(ConfigError, match="this node runs other code"):
        RayRun("", {}, "0" * 64).check_code()


def test_secrets_do_not_show(tmp_path: Path) -> None:
    assert "hush" not in repr(RayRun("", SECRETS, ""))


def test_the_source_is_shipped_without_what_runs_leave_behind(tmp_path: Path) -> None:
    assert [path.name for path in Path(source_env(tmp_path)["working_dir"]).iterdir()] == ["EMPTY"]
    (tmp_path / "pyproject.toml").touch()
    env = source_env(tmp_path)
    assert env["working_dir"] == str(tmp_path)
    assert "/runs" in env["excludes"]


def test_the_digest_covers_every_package_of_the_wheel() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert list(PACKAGES) == project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
