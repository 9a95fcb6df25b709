"""A compose project of a test's own: its secrets, its port, what it says. Talks to a real Docker engine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from services.contracts import StatusSnapshot
from services.net import free_port
from tests.support.watching import Watched

ROOT = Path(__file__).parents[2]
BUILD_S = 900


class Stack(Watched):
    """docker-compose on the committed file, under a name of its own."""

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self._env = {
            **os.environ,
            # Debian's own client speaks BuildKit to Debian's engine without a plug-in
            "PATH": f"/usr/bin:{os.environ['PATH']}",
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "COMPOSE_PROJECT_NAME": name,
            "SEPT_TOKEN": self.token,
            "SEPT_GENERATOR_TOKEN": secrets.token_hex(16),
            "SEPT_WATCH_TOKEN": secrets.token_hex(16),
            "REDIS_PASSWORD": secrets.token_hex(16),
            "REDIS_GENERATOR_PASSWORD": secrets.token_hex(16),
            "SEPT_CONFIG": str(config),
            "SEPT_PUBLISH": f"127.0.0.1:{self.port}",
            "SEPT_LEARNER_THREADS": "1",
        }

    def compose(self, *args: str, timeout_s: float = 240) -> str:
        """docker-compose --profile cpu ARGS; its output, which is in the error when it fails."""
        return self._run("docker-compose", "--profile", "cpu", *args, timeout_s=timeout_s)

    def docker(self, *args: str, timeout_s: float = 60) -> str:
        return self._run("docker", *args, timeout_s=timeout_s)

    def _run(self, *argv: str, timeout_s: float) -> str:
        program = shutil.which(argv[0], path=self._env["PATH"])
        assert program is not None, f"{argv[0]} is not installed: on Debian, apt-get install docker.io docker-compose"
        done = subprocess.run(
            [program, *argv[1:]], cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def containers(self, service: str) -> list[str]:
        """Ids of the service's containers, running or not."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={self.name}"
        return self.docker("ps", "--all", "--quiet", "--filter", label, "--filter", project).split()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", "--format", "{{json .State}}", container))
        return found

    def status(self) -> StatusSnapshot | None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/status", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http
                return StatusSnapshot.model_validate_json(answer.read())
        except OSError:
            return None

    def last_words(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "25")
