"""A Docker engine and the images of this tree. Base images that no registry gives are made of Debian packages."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compose_stack import BUILD_S, ROOT, Stack

ENGINE_STARTS_S = 30
BASES = ("python:3.11-slim-bookworm", "redis:7.2-bookworm")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The engine that runs here, else one of our own for the session."""
    if _answers():
        yield
        return
    log = (tmp_path_factory.mktemp("engine") / "dockerd.log").open("wb")
    with log, subprocess.Popen(["dockerd"], stdout=log, stderr=log, start_new_session=True) as dockerd:
        try:
            started = time.monotonic()
            while not _answers():
                assert time.monotonic() - started < ENGINE_STARTS_S, f"dockerd does not start: {log.name}"
                assert dockerd.poll() is None, f"dockerd ended: {log.name}"
                time.sleep(0.2)
            yield
        finally:
            dockerd.terminate()


def _answers() -> bool:
    return subprocess.run(["docker", "info"], capture_output=True, env=_env()).returncode == 0


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def images(engine: None) -> None:
    """Built from the committed files."""
    for base in BASES:
        have = subprocess.run(["docker", "image", "inspect", base], capture_output=True, env=_env()).returncode == 0
        if not have and subprocess.run(["docker", "pull", base], capture_output=True, env=_env()).returncode != 0:
            subprocess.run(["sh", str(ROOT / "tests/compose/make_bases.sh"), *BASES], check=True, env=_env())
    for target in ("services", "worker-cpu"):
        # the host's network, since a mirror or proxy of the packages may listen on its loopback
        command = [
            "docker",
            "build",
            "--network",
            "host",
            "-f",
            "deploy/containers/docker/Dockerfile",
            "--target",
            target,
        ]
        command += ["-t", f"sept-{target}:0.1.0", "."]
        subprocess.run(command, cwd=ROOT, check=True, env={**_env(), "DOCKER_BUILDKIT": "1"}, timeout=BUILD_S)


@pytest.fixture
def stack_of(images: None) -> Iterator[Callable[[str, Path], Stack]]:
    """Makes a stack of that name and config with empty volumes; takes it down with them."""
    stacks: list[Stack] = []

    def clear(stack: Stack) -> None:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def make(name: str, config: Path) -> Stack:
        stacks.append(Stack(name, config))
        clear(stacks[-1])  # of tests that were killed
        return stacks[-1]

    yield make
    for stack in stacks:
        clear(stack)
