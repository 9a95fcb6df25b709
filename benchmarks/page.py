"""What people who watch cost the run: the same run with and without open pages, in turns.

    python -m benchmarks.page --json

A real `sept run` with a scripted generator; each browser holds the page's event stream and asks for what an open
overview asks for, as often. The learner has one core to itself; all others and the browsers, which in life are on other
machines, share another. That one is never idle: a process that yields to all others spins on it, as two virtual cores
are often two threads of one, of which each is faster while the other sleeps. Of two neighbouring windows one has
browsers, the other none, in alternating order.
`learner_cost` is what the learner loses of its tokens per second of training: 1 minus the median over the pairs of
(with / without). `services_cores` is the processor time that the services take more with browsers than without, and
`services_rss_mb` the most memory that they ever held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.runs import Run, base_settings, pin_process, two_cores, write_inputs
from deploy import endpoints
from services.contracts import RoundMetrics

ASKED_EVERY_S = {"/v1/rounds": 3.0, "/v1/queue": 10.0, "/v1/staleness": 10.0, "/v1/versions": 5.0}
"""As the page's scripts do while rounds go on."""
WARM_UP_ROUNDS = 20
SETTLE_S = 1.0
"""Between two windows, so that a round belongs to one of them."""
DEADLINE_S = 120.0
POLL_S = 0.05


async def browse(url: str) -> None:
    """One open page, until cancelled."""
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http, asyncio.TaskGroup() as group:
        group.create_task(_follow(http))
        for path, every_s in ASKED_EVERY_S.items():
            group.create_task(_ask(http, path, every_s))


async def _follow(http: httpx.AsyncClient) -> None:
    async with http.stream("GET", "/v1/live") as frames:
        async for _ in frames.aiter_raw():
            pass


async def _ask(http: httpx.AsyncClient, path: str, every_s: float) -> None:
    while True:
        (await http.get(path)).raise_for_status()
        await asyncio.sleep(every_s)


@asynccontextmanager
async def browsing(url: str, browsers: int) -> AsyncIterator[None]:
    """So many open pages within the block."""
    open_pages = [asyncio.create_task(browse(url)) for _ in range(browsers)]
    try:
        yield
        for page in open_pages:
            if page.done():
                page.result()
    finally:
        for page in open_pages:
            page.cancel()
        await asyncio.gather(*open_pages, return_exceptions=True)


@contextmanager
def _never_idle() -> Iterator[None]:
    """What this process is bound to, is busy within the block."""
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.nice(19))
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()


async def watch(run: Run, url: str, browsers: int, window_s: float) -> tuple[float, float]:
    """In one window: tokens/s of the learner while it trained, and cores that the services kept busy."""
    pid = run.pid_of("services")
    assert pid is not None
    async with browsing(url, browsers):
        await asyncio.sleep(SETTLE_S)
        start, used_s = time.time(), cpu_s(pid)
        await asyncio.sleep(window_s)
        end, used_s = time.time(), cpu_s(pid) - used_s
    rounds = [metrics for metrics in run.folder.rounds() if start <= metrics.time < end]
    if not rounds:
        raise RuntimeError(f"no round ended within {window_s} s: take longer windows")
    return _rate(rounds), used_s / (end - start)


def _rate(rounds: Sequence[RoundMetrics]) -> float:
    tokens = sum(metrics.prompt_tokens + metrics.response_tokens for metrics in rounds)
    return tokens / sum(metrics.train_s for metrics in rounds)


def peak_rss_mb(pid: int) -> float:
    """The most memory that a process ever held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) / 1024


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(folder: Path, *, browsers: int, pairs: int, window_s: float) -> dict[str, Any]:
    """Start a run, watch it in turns, stop it."""
    write_inputs(folder, seed=0, prompts=160)
    values = base_settings(folder) | {
        "sampling.max_response_tokens": 24,
        "training.rounds": 1_000_000,
        "training.prompts_per_round": 32,
        "training.max_staleness": 2,
        "generator.engine": "scripted",
        "generator.count": 1,
        "generator.max_in_flight": 64,
        "checkpoint.every_rounds": 50,
    }
    run = Run(folder / "run", values)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(run.stop)
        await run.start()
        learners, others = two_cores()
        await run.pin({"learner": learners, "redis": others, "services": others, "generator-0": others})
        pin_process(os.getpid(), others)
        stack.enter_context(_never_idle())
        async with asyncio.timeout(DEADLINE_S):
            while run.rounds_done() < WARM_UP_ROUNDS:
                if not run.going:
                    raise RuntimeError(f"the run ended: {run.log.read_text()[-2000:]}")
                await asyncio.sleep(POLL_S)
        where = endpoints.read(run.folder)
        assert where is not None
        ratios, idle, cores = [], [], []
        for pair in range(pairs):
            seen = {}
            for count in (0, browsers) if pair % 2 else (browsers, 0):
                seen[count] = await watch(run, where.services_url, count, window_s)
            ratios.append(seen[browsers][0] / seen[0][0])
            idle.append(seen[0][0])
            cores.append(seen[browsers][1] - seen[0][1])
        pid = run.pid_of("services")
        assert pid is not None
        return {
            "learner_cost": round(1 - statistics.median(ratios), 4),
            "services_rss_mb": round(peak_rss_mb(pid), 1),
            "services_cores": round(statistics.median(cores), 4),
            "browsers": browsers,
            "pairs": pairs,
            "window_s": window_s,
            "ratios": [round(ratio, 4) for ratio in ratios],
            "learner_tokens_per_s": round(statistics.median(idle)),
            "rounds": run.rounds_done(),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--window-s", type=float, default=30.0)
    parser.add_argument("--json", action="store_true", help="print one line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sept-page-") as folder:
        result = asyncio.run(
            measure(Path(folder), browsers=options.browsers, pairs=options.pairs, window_s=options.window_s)
        )
    print(json.dumps(result, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
