"""Whether a Redis that a container starts has the users that the code expects."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from services.net import free_port
from services.streams.acl import GENERATOR, permissions
from services.streams.connection import Keys, connect

OWNER, GENERATORS = "o" * 24, "g" * 24


def assert_generators_user(script: str, folder: Path) -> None:
    """Run a container's start script here: its rules are those of the code, and Redis takes them as they are."""
    written = re.search(rf"user {GENERATOR} on >\S+ resetchannels ((?:.*\\\n)*.*)", script)
    assert written is not None
    assert " ".join(written[1].replace("\\\n", " ").split()) == permissions()
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    script = script.replace("--dir /data", f"--dir {folder} --port {port} --bind 127.0.0.1")
    env = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": OWNER, "REDIS_GENERATOR_PASSWORD": GENERATORS}
    process = subprocess.Popen(["sh", "-c", script], env=env, stdout=subprocess.DEVNULL)
    try:
        with connect(f"redis://:{OWNER}@127.0.0.1:{port}/0") as owner:
            assert owner.ping()
        with connect(f"redis://{GENERATOR}:{GENERATORS}@127.0.0.1:{port}/0") as generator:
            assert generator.xadd(Keys("run").rollouts, {"a": "b"})
            with pytest.raises(redis.exceptions.NoPermissionError):
                generator.flushall()
    finally:
        process.terminate()
        process.wait(30)
