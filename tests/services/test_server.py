"""Where the services listen, and what stops them from it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.config import DeadlinesConfig, ServicesConfig
from services.errors import ConfigError
from services.run_folder import RunFolder
from services.server import serve


def start(tmp_path: Path, services: ServicesConfig) -> None:
    serve(
        folder=RunFolder(tmp_path),
        redis_url="redis://127.0.0.1:1/0",
        services=services,
        deadlines=DeadlinesConfig(),
    )


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "example.org"])
@pytest.mark.parametrize("token", [None, SecretStr("")])
def test_beyond_loopback_a_token_is_required(tmp_path: Path, host: str, token: SecretStr | None) -> None:
    with pytest.raises(ConfigError, match=r"services\.host.*services\.token"):
        start(tmp_path, ServicesConfig(host=host, port=0, token=token))


SERVE = """
import sys
from pathlib import Path
from services.config import DeadlinesConfig, ServicesConfig
from services.run_folder import RunFolder
from services.server import serve

serve(
    folder=RunFolder(Path(sys.argv[1])),
    redis_url=sys.argv[2],
    services=ServicesConfig(port=0),
    deadlines=DeadlinesConfig(),
    listening=lambda url: Path(sys.argv[3]).write_text(url),
)
"""


async def test_sigterm_ends_waiting_requests_and_the_process_cleanly(tmp_path: Path, redis_url: str) -> None:
    folder = RunFolder(tmp_path / "run").create()
    address = tmp_path / "address"
    os.mkfifo(address)  # reading it waits for the server
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(folder.path), redis_url, str(address)
    )
    try:
        url = await asyncio.wait_for(asyncio.to_thread(address.read_text), 60)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            assert (await http.get("/healthz")).status_code == 200
            waiting = asyncio.create_task(http.get("/v1/weights/latest", params={"timeout_s": 60}))
            await http.get("/healthz")  # answered after the waiting request was sent
            process.terminate()
            assert (await asyncio.wait_for(waiting, 30)).status_code == 204
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
