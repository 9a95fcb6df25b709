"""Where the services listen, and what stops them from it."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.config import DeadlinesConfig, ServicesConfig
from services.errors import ConfigError, UnavailableError
from services.http_client import trusting
from services.run_folder import RunFolder
from services.server import serve
from services.weights.client import WeightClient
from tests.support.certificates import make_certificate
from tests.support.endpoint import open_store
from tests.support.weight_samples import first_version


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
    services=ServicesConfig.model_validate_json(sys.argv[4]),
    deadlines=DeadlinesConfig(),
    listening=lambda url: Path(sys.argv[3]).write_text(url),
)
"""


@asynccontextmanager
async def serving(
    tmp_path: Path, redis_url: str, **services: str
) -> AsyncIterator[tuple[str, RunFolder, asyncio.subprocess.Process]]:
    """The services in a process of their own: their address, the run's folder, the process."""
    folder = RunFolder(tmp_path / "run").create()
    address = tmp_path / "address"
    os.mkfifo(address)  # reading it waits for the server
    arguments = [str(folder.path), redis_url, str(address), json.dumps({"port": 0, **services})]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, *arguments)
    try:
        yield await asyncio.wait_for(asyncio.to_thread(address.read_text), 60), folder, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_ends_waiting_requests_and_the_process_cleanly(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url) as (url, _, process), httpx.AsyncClient(base_url=url, timeout=60) as http:
        assert (await http.get("/healthz")).status_code == 200
        waiting = asyncio.create_task(http.get("/v1/weights/latest", params={"timeout_s": 60}))
        await http.get("/healthz")  # answered after the waiting request was sent
        process.terminate()
        assert (await asyncio.wait_for(waiting, 30)).status_code == 204
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_with_a_certificate_the_services_speak_https_and_their_clients_trust_it(
    tmp_path: Path, redis_url: str
) -> None:
    cert, key = make_certificate(tmp_path, "services.example")
    (tmp_path / "other").mkdir()
    other, _ = make_certificate(tmp_path / "other", "services.example")
    services = {"tls_cert": str(cert), "tls_key": str(key), "token": "t" * 16, "generator_token": "g" * 16}
    async with serving(tmp_path, redis_url, **services) as (url, folder, _):
        assert url.startswith("https://127.0.0.1:")
        store = open_store(folder.weights, folder.run_id)
        manifest = store.publish(0, first_version())
        client_of = partial(WeightClient, url, "g" * 16, deadline_s=0.5, identity=folder.run_identity)
        async with client_of(tls_cert=cert) as client:
            assert await client.latest(None, None, 0) == manifest
            fetched = await client.fetch(0, manifest.files[0], tmp_path / "file")
            assert fetched.read_bytes() == store.file_path(0, manifest.files[0].name).read_bytes()
        for trusted in (None, other):
            async with client_of(tls_cert=trusted) as client:
                with pytest.raises(UnavailableError, match="certificate verify failed"):
                    await client.latest(None, None, 0)


def test_elsewhere_the_certificate_must_name_the_host(tmp_path: Path) -> None:
    cert, _ = make_certificate(tmp_path, "services.example")
    elsewhere, here = trusting(cert, "https://services.example:8400"), trusting(cert, "https://127.0.0.1:8400")
    assert isinstance(elsewhere, ssl.SSLContext) and elsewhere.check_hostname
    assert isinstance(here, ssl.SSLContext) and not here.check_hostname and len(here.get_ca_certs()) <= 1
    assert trusting(None, "https://127.0.0.1:8400") is True


def test_a_certificate_and_a_key_that_do_not_fit_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, _ = make_certificate(tmp_path, "services.example")
    _, key = make_certificate(tmp_path / "other", "services.example")
    for tls_cert, tls_key in ((cert, key), (cert, tmp_path / "absent"), (tmp_path, key)):
        with pytest.raises(ConfigError, match=r"services\.tls_cert .* and services\.tls_key .* cannot be used"):
            start(tmp_path, ServicesConfig(port=0, tls_cert=tls_cert, tls_key=tls_key))
