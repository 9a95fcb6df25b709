"""What the weights of several generators on one host cost: memory that they hold, processor time of an update.

    python -m benchmarks.weight_mirrors --generators 4 --megabytes 200 --json

Mirrors in processes of their own follow the versions of a made set of bf16 tensors, of which each changes a share; no
engine. `--apart` gives each of them a copy of its own, as on hosts of their own. Memory is the sum of the processes'
proportional shares (Pss), so that what they share counts once, less what they have before the first version.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx
import numpy as np

from services.tensors import RawTensor
from services.weights.client import WeightClient
from services.weights.host_downloads import HostDownloads
from services.weights.mirror import WeightMirror
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader

RUN = "run"
TENSORS = 20
DEADLINE_S = 300.0


def publish(folder: Path, megabytes: float, updates: int, share: float) -> None:
    """Versions 0 .. updates; from one to the next so many elements move by one step of bf16."""
    rng = np.random.default_rng(0)
    elements = int(megabytes * 1e6 / 2 / TENSORS)
    values = {f"layer.{at}": 0.02 * rng.standard_normal(elements, np.float32) for at in range(TENSORS)}
    weights = {name: (each.view("<u4") >> 16).astype("<u2") for name, each in values.items()}
    store = WeightPublisher(folder, RUN)
    for version in range(updates + 1):
        for bits in weights.values():
            if version:
                bits[rng.integers(0, elements, int(elements * share))] += 1
        tensors = {name: RawTensor("BF16", bits.shape, bits.copy().view(np.uint8)) for name, bits in weights.items()}
        store.publish(version, tensors)


def be_generator(
    store: Path, folder: Path, copies: Path, updates: int, together: Barrier, results: Queue[tuple[float, int]]
) -> None:
    """Main function of a process: follow all versions at the same time as the others do."""
    results.put(asyncio.run(follow(store, folder, copies, updates, together)))


async def follow(store: Path, folder: Path, copies: Path, updates: int, together: Barrier) -> tuple[float, int]:
    """(Processor seconds of the updates, bytes of memory) of this process."""
    reader = WeightReader(store, RUN)

    def answer(request: httpx.Request) -> httpx.Response:
        version, _, name = request.url.path.removeprefix("/v1/weights/").partition("/files/")
        path = store / f"{int(version):08d}" / name
        content = path.read_bytes() if name else reader.manifest(int(version)).model_dump_json().encode()
        return httpx.Response(200, stream=httpx.ByteStream(content))

    async with WeightClient("http://store", deadline_s=DEADLINE_S, transport=httpx.MockTransport(answer)) as client:
        mirror = WeightMirror(folder, client, HostDownloads(store.parent / "downloads", client), copies)
        together.wait(DEADLINE_S)  # libraries are shared from here on by as many as later
        before = memory_bytes()
        started = time.process_time()
        for version in range(updates + 1):
            together.wait(DEADLINE_S)
            if version == 1:
                started = time.process_time()
            async with mirror.advance(reader.manifest(version)):
                pass
        seconds = time.process_time() - started
        together.wait(DEADLINE_S)
        held = memory_bytes() - before
        together.wait(DEADLINE_S)  # nobody leaves before all have looked
        mirror.close()
    return seconds, held


def memory_bytes() -> int:
    """This process' proportional share of the memory that it uses."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(*, generators: int, megabytes: float, updates: int, share: float, apart: bool) -> dict[str, float]:
    """Sums over all generators."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(generators), context.Queue()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        publish(root / "store", megabytes, updates, share)
        processes = []
        for at in range(generators):
            copies = root / (f"copies-{at}" if apart else "copies")
            arguments = (root / "store", root / f"mirror-{at}", copies, updates, together, results)
            processes.append(context.Process(target=be_generator, args=arguments, daemon=True))
            processes[-1].start()
        found = [results.get(timeout=DEADLINE_S) for _ in processes]
        for process in processes:
            process.join(DEADLINE_S)
    return {
        "generators": generators,
        "weights_mb": megabytes,
        "memory_mb": sum(held for _, held in found) / 1e6,
        "processor_s_per_update": sum(seconds for seconds, _ in found) / updates,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=200.0, help="of weights")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--changed", type=float, default=0.0025, help="share of the weights that each update changes")
    parser.add_argument("--apart", action="store_true", help="a copy for each generator")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    numbers = measure(
        generators=arguments.generators,
        megabytes=arguments.megabytes,
        updates=arguments.updates,
        share=arguments.changed,
        apart=arguments.apart,
    )
    for what, value in numbers.items():
        print(f"{what}: {value:.2f}", flush=True)
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
