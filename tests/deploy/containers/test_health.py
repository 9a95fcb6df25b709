"""What a container's health check says, asked of a real endpoint of our own shape."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.containers.health import SERVICES_URL
from services.config import ServicesConfig

HEALTH = Path(__file__).parents[3] / "deploy/containers/health.py"
TOKEN = "secret"
HERE = {"host": socket.gethostname()}
STATUS: dict[str, Any] = {
    "learner": HERE,
    "learner_lost": False,
    "generators": [{"heartbeat": HERE, "lost": True}, {"heartbeat": {"host": "elsewhere"}, "lost": False}],
}


class Endpoint(BaseHTTPRequestHandler):
    """Answers /v1/status with STATUS and refuses readiness."""

    def do_GET(self) -> None:
        authorized = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(401 if not authorized else 200 if self.path == "/v1/status" else 503)
        self.end_headers()
        self.wfile.write(json.dumps(STATUS).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check(part: str, url: str, token: str = TOKEN, **environ: str) -> tuple[int, str]:
    """Exit code and reason, as the engine sees them."""
    env = {**os.environ, "SEPT_SERVICES__URL": url, "SEPT_SERVICES__TOKEN": token, **environ}
    done = subprocess.run([sys.executable, str(HEALTH), part], env=env, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def test_a_part_that_is_heard_is_healthy(url: str) -> None:
    assert check("learner", url) == (0, "")


def test_a_proxy_of_the_environment_is_not_asked_for_the_container_itself(url: str) -> None:
    assert check("learner", url, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9") == (0, "")


def test_a_part_that_fell_silent_is_not(url: str) -> None:
    code, reason = check("generator", url)
    assert code == 1
    assert reason.endswith("has fallen silent")


def test_services_without_redis_are_not(url: str) -> None:
    code, reason = check("services", url)
    assert code == 1
    assert "503" in reason


def test_a_refused_token_says_so(url: str) -> None:
    code, reason = check("learner", url, token="wrong")
    assert code == 1
    assert "401" in reason


def test_the_port_is_that_of_the_services() -> None:
    assert urlsplit(SERVICES_URL).port == ServicesConfig().port
