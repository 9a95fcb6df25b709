"""The compose file and the images, without an engine: what they promise can be read off them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from deploy.load_settings import load
from learner.parallel.launch_env import ON_CPU
from tests.support.redis_users import assert_generators_user

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy/containers/docker/Dockerfile"
SECRETS = {
    "SEPT_TOKEN": "token",
    "SEPT_GENERATOR_TOKEN": "another",
    "SEPT_WATCH_TOKEN": "third",
    "REDIS_PASSWORD": "password",
    "REDIS_GENERATOR_PASSWORD": "anotherpassword",
}
OURS = ("services", "learner", "generator", "learner-gpu", "generator-gpu")
LINT = """
extends: default
rules:
  line-length: {max: 130}
  document-start: disable
  comments: {min-spaces-from-content: 2}
"""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def pins(path: Path) -> set[str]:
    return {line for line in path.read_text().splitlines() if line and not line.startswith((" ", "#"))}


def test_the_file_is_clean_yaml() -> None:
    problems = list(linter.run(COMPOSE.read_text(), YamlLintConfig(LINT)))
    assert not [f"{problem.line}: {problem.desc}" for problem in problems]


@pytest.mark.parametrize("missing", [None, *SECRETS])
def test_compose_takes_the_file_and_refuses_without_a_secret(missing: str | None, tmp_path: Path) -> None:
    (empty := tmp_path / "env").touch()
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    given = {name: value for name, value in SECRETS.items() if name != missing}
    env = {name: value for name, value in os.environ.items() if name not in SECRETS} | given
    profiles = [word for name in ("cpu", "gpu", "demo", "relay", "monitoring") for word in ("--profile", name)]
    command = [program, "-f", str(COMPOSE), "--env-file", str(empty), *profiles, "config", "--quiet"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if missing is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert f"set {missing} in .env" in done.stderr


def test_every_file_that_it_names_exists(services: dict[str, Any]) -> None:
    volumes = [volume for one in services.values() for volume in one.get("volumes", [])]
    sources = [re.sub(r"^\$\{\w+:-(.*?)\}", r"\1", volume).partition(":")[0] for volume in volumes]
    files = {source for source in sources if source.startswith("./")}
    files |= {one["build"]["dockerfile"] for one in services.values() if "build" in one}
    assert "./deploy/config/demo.toml" in files
    assert not [file for file in files if not (ROOT / file).is_file()]


def test_every_module_that_a_container_starts_exists() -> None:
    modules = set(re.findall(r"-m\b[\", ]+([\w.]+)", COMPOSE.read_text() + DOCKERFILE.read_text()))
    assert modules >= {"deploy.containers.claim_gpus", "studies.demo"}
    assert all(importlib.util.find_spec(module) for module in modules - {"venv"})


def test_every_secret_must_be_given(services: dict[str, Any]) -> None:
    text = COMPOSE.read_text()
    for name in SECRETS:
        uses = re.findall(r"(?<!\$)\$\{" + name + r"([^}]*)\}", text)
        assert uses and all(use.startswith(":?") for use in uses)
        assert re.search(rf"^{name}=$", (ROOT / ".env.example").read_text(), re.MULTILINE)


def test_no_secret_is_part_of_a_command(services: dict[str, Any]) -> None:
    """What compose fills into a command shows in `ps`; what the container's shell fills in does not."""
    for name, service in services.items():
        words = " ".join([*service.get("command", []), *service.get("entrypoint", [])])
        assert not re.search(r"(?<!\$)\$\{?(SEPT_\w*TOKEN|REDIS_\w*PASSWORD|GRAFANA)", words), name


def test_containers_are_closed_and_drain(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert name == "demo" or service["healthcheck"]["test"], name
        assert service["mem_limit"] and service["pids_limit"], name
    drain_s = load(None, environ={}).deadlines.drain_s
    for name in OURS:
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > drain_s + 5


def test_only_the_services_are_published_and_only_to_this_host(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"services", "relay", "prometheus", "grafana"}
    assert all(re.search(r":-127\.0\.0\.1:\d+\}:\d+$", port) for ports in published.values() for port in ports)


def test_learner_and_services_share_the_folder_and_generators_do_not(services: dict[str, Any]) -> None:
    for name in ("services", "learner", "learner-gpu"):
        assert "runs:/sept/runs" in services[name]["volumes"]
    for name in ("generator", "generator-gpu"):
        assert "/sept/runs" in services[name]["volumes"]


def test_a_learner_on_cpu_gets_the_environment_that_sept_run_gives_it(services: dict[str, Any]) -> None:
    assert services["learner"]["environment"].items() >= ON_CPU.items()


def test_a_learner_has_a_gpu_for_each_rank_and_memory_to_share_between_them(services: dict[str, Any]) -> None:
    assert services["learner-gpu"]["environment"]["SEPT_GPUS"] == "${SEPT_LEARNER_GPUS:-1}"
    assert services["learner-gpu"]["shm_size"] == services["learner"]["shm_size"] == "8g"


def test_every_setting_in_the_environment_exists(services: dict[str, Any]) -> None:
    for name in OURS:
        given = {key: str(value) for key, value in services[name]["environment"].items()}
        given = {key: re.sub(r"\$\{(\w+):[?-][^}]*\}", r"\1", value) for key, value in given.items()}
        assert load(None, environ=given).services.port == 8400


def test_every_part_has_the_secrets_of_its_role_alone(services: dict[str, Any]) -> None:
    def secrets_of(name: str) -> set[str]:
        return set(re.findall(r"\$\{(\w*(?:TOKEN|PASSWORD))", str(services[name].get("environment", ""))))

    for name in ("generator", "generator-gpu"):
        assert secrets_of(name) == {"SEPT_GENERATOR_TOKEN", "REDIS_GENERATOR_PASSWORD"}
    for name in ("learner", "learner-gpu"):
        assert secrets_of(name) == {"SEPT_WATCH_TOKEN", "REDIS_PASSWORD"}
    assert secrets_of("prometheus") == {"SEPT_WATCH_TOKEN"}
    assert secrets_of("grafana") == {"GRAFANA_PASSWORD"}
    assert secrets_of("redis") == {"REDIS_PASSWORD", "REDIS_GENERATOR_PASSWORD"}


def test_grafana_starts_with_a_password_of_its_own_only(services: dict[str, Any]) -> None:
    script = services["grafana"]["entrypoint"][-1].replace("$$", "$").replace("exec /run.sh", "echo started")
    for password, started in (("", False), ("one", True)):
        done = subprocess.run(
            ["sh", "-c", script], env={"GF_SECURITY_ADMIN_PASSWORD": password}, capture_output=True, text=True
        )
        assert (done.stdout == "started\n") == started == (done.returncode == 0)
        assert started or "set GRAFANA_PASSWORD in .env" in done.stderr


def test_the_redis_that_it_starts_has_the_generators_user(services: dict[str, Any], tmp_path: Path) -> None:
    script = services["redis"]["command"][-1].replace("$$", "$")
    assert_generators_user(script, tmp_path)


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service["volumes"] if mount.startswith("./")]
    assert mounts
    assert all((ROOT / mount.split(":")[0]).is_file() for mount in mounts)


def test_every_image_of_ours_is_a_target(services: dict[str, Any]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE.read_text(), re.MULTILINE))
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert built == {"services", "worker-cpu", "worker-cuda"} <= targets
    images = {service["image"].split(":")[0] for service in services.values() if service["image"].startswith("sept-")}
    assert images == {f"sept-{target}" for target in built}


def test_images_end_as_an_ordinary_user() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)
    for target in ("services", "worker-cpu", "worker-cuda"):
        (stage,) = [stage for stage in stages if stage.splitlines()[0].endswith(f" AS {target}")]
        assert re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1] == "10001:10001"


REQUIREMENTS = sorted(path for path in (ROOT / "requirements").rglob("*.txt") if path.name != "overrides.txt")
WITHOUT_HASH = "torch==2.13.0+cpu"
"""Its build differs between the indexes that have it."""


@pytest.mark.parametrize(("image", "whole"), [("services", "cpu"), ("worker-cpu", "cpu"), ("worker-cuda", "cuda")])
def test_images_hold_what_was_tested(image: str, whole: str) -> None:
    held = pins(ROOT / f"requirements/images/{image}.txt")
    assert not held - pins(ROOT / f"requirements/{whole}.txt")
    assert ("torch==" in "".join(held)) == (image == "worker-cuda")
    torch = {(ROOT / folder / "torch-cpu.txt").read_text() for folder in ("requirements", "requirements/images")}
    assert torch == {f"{WITHOUT_HASH}\n"}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_package_is_pinned_with_its_hashes(path: Path) -> None:
    packages = path.read_text().replace("\\\n", " ").splitlines()
    assert packages
    for package in packages:
        name, *hashes = package.split()
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^=]+", name)
        assert name == WITHOUT_HASH or (hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes))


@pytest.mark.parametrize("path", [DOCKERFILE, ROOT / "Makefile", ROOT / "README.md"], ids=lambda path: path.name)
def test_whatever_installs_packages_asks_for_their_hashes(path: Path) -> None:
    installs = re.findall(r"pip install ([^&|\n]*-r [^&|\n ]+)", path.read_text().replace("\\\n", " "))
    assert installs
    for install in installs:
        assert "--require-hashes" in install or install.endswith("torch-cpu.txt"), install
