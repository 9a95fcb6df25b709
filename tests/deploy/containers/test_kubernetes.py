"""The manifests: what the API server would refuse, and that they say the same as the compose file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

pytest.importorskip("ray.serve")

from deploy.load_settings import load
from deploy.ray_cluster.app import Options
from tests.support.redis_users import assert_generators_user

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/containers/kubernetes"
FILES = ("sept.yaml", "learner-nodes.yaml", "rayservice.yaml")
LINT = """
extends: default
rules:
  line-length: {max: 130}
"""
Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]


def pods(name: str) -> dict[str, Manifest]:
    """Pod specs by what they belong to."""
    found: dict[str, Manifest] = {}
    for manifest in manifests(name):
        spec = manifest.get("spec", {})
        if manifest["kind"] == "RayService":
            cluster = spec["rayClusterConfig"]
            groups = {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
            found |= {group: groups[group]["template"]["spec"] for group in groups}
        elif "template" in spec:
            found[manifest["metadata"]["name"]] = spec["template"]["spec"]
    return found


EVERY_POD = [(name, part) for name in FILES for part in pods(name)]


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_clean_yaml(name: str) -> None:
    problems = list(linter.run((FOLDER / name).read_text(), YamlLintConfig(LINT)))
    assert not [f"{problem.line}: {problem.desc}" for problem in problems]


@pytest.mark.parametrize("name", ["sept.yaml", "learner-nodes.yaml"])
def test_core_kinds_follow_the_api_servers_schemas(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(name):
        validator.validate(manifest, "1.31", strict=True)


def test_the_validator_refuses_what_the_api_server_would() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    (job,) = [manifest for manifest in manifests("learner-nodes.yaml") if manifest["kind"] == "Job"]
    job["spec"]["completionsMode"] = job["spec"].pop("completionMode")
    with pytest.raises(validator.ValidationError, match="completionsMode"):
        validator.validate(job, "1.31", strict=True)


def test_a_learner_of_several_nodes_is_a_pod_for_each_with_a_gpu_for_each_rank() -> None:
    (job,) = [manifest for manifest in manifests("learner-nodes.yaml") if manifest["kind"] == "Job"]
    spec, (container,) = job["spec"], job["spec"]["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(container["args"][container["args"].index("--nodes") + 1])
    assert container["args"][-2:] == ["--node", "$(JOB_COMPLETION_INDEX)"]
    said = (FOLDER / "learner-nodes.yaml").read_text().splitlines()[0]
    assert f"ranks = {spec['completions'] * int(container['resources']['limits']['nvidia.com/gpu'])}" in said


@pytest.mark.parametrize(
    ("name", "part"), [("sept.yaml", "learner"), ("learner-nodes.yaml", "learner-nodes"), ("rayservice.yaml", "store")]
)
def test_ranks_share_memory_beyond_a_containers_default(name: str, part: str) -> None:
    (volume,) = [volume for volume in pods(name)[part]["volumes"] if volume["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    (container,) = pods(name)[part]["containers"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


@pytest.mark.parametrize(("name", "part"), EVERY_POD)
def test_pods_are_closed(name: str, part: str) -> None:
    pod = pods(name)[part]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        # Ray writes where it likes below its home
        assert name == "rayservice.yaml" or container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"] and "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("name", "part"), EVERY_POD)
def test_what_is_mounted_is_there(name: str, part: str) -> None:
    pod = pods(name)[part]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {
        claim["metadata"]["name"]
        for found in manifests(name)
        for claim in found["spec"].get("volumeClaimTemplates", [])
    }
    claims = {manifest["metadata"]["name"] for manifest in manifests("sept.yaml")}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for volume in pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize(("name", "part"), [pair for pair in EVERY_POD if pair[1] != "redis"])
def test_settings_exist_and_secrets_come_from_the_secret(name: str, part: str) -> None:
    (container,) = pods(name)[part]["containers"]
    given = {entry["name"]: entry.get("value", f"secret of {entry['name']}") for entry in container["env"]}
    settings = load(None, environ=given)
    assert settings.services.token is not None and settings.redis.url is not None
    for entry in container["env"]:
        if entry["name"].endswith(("TOKEN", "PASSWORD")):
            assert entry["valueFrom"]["secretKeyRef"]["name"] == "sept"
    assert pods(name)[part]["terminationGracePeriodSeconds"] > settings.deadlines.drain_s + 5


def test_every_part_has_the_secrets_of_its_role_alone() -> None:
    def secrets_of(part: str) -> set[str]:
        (container,) = pods("sept.yaml")[part]["containers"]
        return {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"] if "secretKeyRef" in str(entry)}

    assert secrets_of("generator") == {"generator-token", "redis-generator-password"}
    assert secrets_of("learner") == {"watch-token", "redis-password"}
    assert secrets_of("services") == {"token", "generator-token", "watch-token", "redis-password"}


def test_the_redis_that_it_starts_has_the_generators_user(tmp_path: Path) -> None:
    (container,) = pods("sept.yaml")["redis"]["containers"]
    assert_generators_user(container["command"][-1], tmp_path)


def policies(name: str) -> list[Manifest]:
    return [manifest["spec"] for manifest in manifests(name) if manifest["kind"] == "NetworkPolicy"]


def test_nothing_is_reached_or_reaches_out_unless_a_policy_says_so() -> None:
    everything = {"podSelector": {"matchLabels": {"app": "sept"}}, "policyTypes": ["Ingress", "Egress"]}
    assert everything in policies("sept.yaml")
    for name in FILES:
        for spec in policies(name):
            assert all("from" in rule for rule in spec.get("ingress", []))
    selected = str([spec["podSelector"] for spec in policies("sept.yaml") + policies("rayservice.yaml")])
    assert all(f"{part}'" in selected for part in ("redis", "services", "learner", "generator", "ray-head"))


def test_a_generator_reaches_redis_and_the_services_and_is_reached_by_nobody() -> None:
    (spec,) = [one for one in policies("sept.yaml") if one["podSelector"]["matchLabels"].get("part") == "generator"]
    ports = [(rule["to"][0]["podSelector"]["matchLabels"]["part"], rule["ports"]) for rule in spec["egress"]]
    assert ports == [("redis", [{"port": 6379}]), ("services", [{"port": 8400}])]
    assert "ingress" not in spec


def test_rays_pods_ask_for_a_token() -> None:
    (service,) = [manifest for manifest in manifests("rayservice.yaml") if manifest["kind"] == "RayService"]
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_names_fit_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for part, service in (("redis", "redis"), ("services", "services"), ("learner", "learner-gpu")):
        (container,) = pods("sept.yaml")[part]["containers"]
        assert container["image"] == compose[service]["image"].replace("${SEPT_VERSION:-0.1.0}", "0.1.0")
    targets = {manifest["metadata"]["name"] for manifest in manifests("sept.yaml") if manifest["kind"] == "Service"}
    assert targets == {"redis", "services"}


def test_selectors_find_their_pods() -> None:
    for manifest in manifests("sept.yaml"):
        selector = manifest["spec"].get("selector", {}).get("matchLabels")
        if selector is not None and "template" in manifest["spec"]:
            assert selector == manifest["spec"]["template"]["metadata"]["labels"]


def test_rays_application_takes_its_arguments() -> None:
    (service,) = [manifest for manifest in manifests("rayservice.yaml") if manifest["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    options = Options.model_validate(application["args"])
    groups = {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert options.max_generators == groups["generators"]["maxReplicas"]
    assert application["import_path"] == "deploy.ray_cluster.app:app"
    assert "sept_store" in groups["store"]["rayStartParams"]["resources"]


def test_weights_are_never_in_a_pods_temporary_folder() -> None:
    """On Ray they are in Ray's folder, which has a volume of its own there; elsewhere in that of the run."""
    (service,) = [manifest for manifest in manifests("rayservice.yaml") if manifest["kind"] == "RayService"]
    groups = {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    (generator,) = groups["generators"]["template"]["spec"]["containers"]
    assert "/tmp/ray" in {mount["mountPath"] for mount in generator["volumeMounts"]}
    (deployment,) = [
        each
        for each in manifests("sept.yaml")
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "generator")
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "/sept/runs" in {mount["mountPath"] for mount in container["volumeMounts"]}
