"""The short form: a run on a Ray of one node, from deployment to the last round, with the code that was shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util import list_named_actors

from deploy.ray_cluster.app import ask_about_model_on_ray, run_on_ray, source_env
from deploy.ray_cluster.parts import folder_on_node
from services.errors import ConfigError, ModelError
from services.run_folder import RunFolder
from tests.support.families import REFUSED_BY_ENGINE, save
from tests.support.ray_runs import RayWorld

# Ray leaves sockets and files for the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, runtime_env=source_env(), log_to_driver=False)
    yield
    ray.shutdown()


def where_deploy_is() -> str:
    import deploy

    return str(deploy.__file__)


def replicas() -> list[str]:
    """Names of the actors that Serve has deployed; asking Serve itself would start it."""
    return [actor["name"] for actor in list_named_actors(all_namespaces=True) if "REPLICA" in actor["name"]]


def test_a_run_goes_to_its_end_and_has_the_rounds_of_any_placement(
    tmp_path: Path, redis_url: str, one_node: None
) -> None:
    shipped: str = ray.get(ray.remote(where_deploy_is).remote())
    assert "/runtime_resources/working_dir_files/" in shipped
    world = RayWorld.make(tmp_path, redis_url, rounds=3)
    mirrors = RunFolder(folder_on_node(Path(ray.get_runtime_context().get_temp_dir()))).mirrors
    before = set(mirrors.glob("generator-*"))
    said: list[str] = []
    run_on_ray(world.settings(), world.options(most=1), said.append)
    assert world.found() == world.expected()
    assert mirrors.is_dir() and set(mirrors.glob("generator-*")) == before, "each goes with its generator"
    assert said == [f"serving on port {world.port}; `serve status` shows the parts"]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_that_the_engine_cannot_serve_is_refused_before_anything_starts(
    tmp_path: Path, redis_url: str, one_node: None
) -> None:
    family, reason = REFUSED_BY_ENGINE["qwen2-windows-in-some-layers"]
    world = RayWorld.make(tmp_path, redis_url, rounds=3, sets=("generator.engine=vllm",))
    save(family, tmp_path / "model")
    with pytest.raises(ModelError, match=reason):
        run_on_ray(world.settings(), world.options(most=1), print)
    assert replicas() == []
    no_room = world.options(most=1).model_copy(update={"generator_cpus": 1000.0})
    ask_about_model_on_ray(world.settings(), no_room, gpus=False, deadline_s=0.1)  # not known


def test_what_cannot_fit_is_refused_before_anything_is_deployed(tmp_path: Path, redis_url: str, one_node: None) -> None:
    world = RayWorld.make(tmp_path, redis_url, rounds=3)
    with pytest.raises(ConfigError, match=r"the node of the cluster with the most room: .* generators take"):
        run_on_ray(world.settings(), world.options(least=100_000, most=100_000), print)
    assert replicas() == []
    assert not (tmp_path / "run").exists()
