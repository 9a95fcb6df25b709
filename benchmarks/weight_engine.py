"""What weight updates cost a real vLLM engine: how long it stands still, and what they take from its tokens per second.

    python -m benchmarks.weight_engine --json                  a small model, made on the spot
    python -m benchmarks.weight_engine --model PATH --versions FOLDER --every-s 20 --seconds 60 --json

Generation is continuous: `--in-flight` requests at any time. Three stretches alternate: one without updates, one with
an update every `--every-s`, and one whose updates check canaries, too; the medians of `--rounds` of them count. Of the
loss, `pause_share` is the time that the engine stood still; the rest is what handing the update over and checking the
canaries takes from the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from generator import canary
from generator.config import GeneratorConfig
from generator.engines.base import Engine
from generator.engines.create import create_engine
from services.contracts import Canary, Task, WeightManifest
from services.tensors import Tensors, describe, read_safetensors, version_digest, write_safetensors
from services.weights import delta
from services.weights.mirror import WeightUpdate

RESPONSE_TOKENS = 32
PROMPT_TOKENS = 16
WARM_UP_S = 3.0
REPEATS = 3

Versions = tuple[Tensors, Tensors]
"""Two successive versions."""


@asynccontextmanager
async def engine_on(model: Path, tensors: Tensors, *, in_flight: int) -> AsyncIterator[Engine]:
    """vLLM, serving these tensors as version 0 of the model whose config lies in `model`."""
    config = GeneratorConfig(max_in_flight=in_flight, cpu_cache_gib=1.0, memory_fraction=0.5)
    engine = await asyncio.to_thread(create_engine, config, max_model_len=256)
    with tempfile.TemporaryDirectory() as name:
        await engine.start(_write_model(model, tensors, Path(name)), 0)
        try:
            yield engine
        finally:
            await engine.stop()


def _write_model(model: Path, tensors: Tensors, folder: Path) -> Path:
    for path in model.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


class Versioner:
    """Takes an engine back and forth between two versions, each time under the next number."""

    def __init__(self, engine: Engine, versions: Versions, first_number: int = 1) -> None:
        self._engine = engine
        self._numbers = count(first_number)
        self._at = 0
        self._updates = (_update(*versions[::-1]), _update(*versions))

    async def next(self, *, full: bool = False, canaries: tuple[Canary, ...] = ()) -> tuple[float, WeightManifest]:
        """(seconds of standing still, manifest) of an update to the version that is not served."""
        self._at = 1 - self._at
        update = self._updates[self._at]
        changes = {"weight_version": next(self._numbers), "canaries": canaries}
        update = replace(update, manifest=update.manifest.model_copy(update=changes))
        if full:
            update = replace(update, patches=None, changed=frozenset(update.tensors))
        return await self._engine.apply(update), update.manifest


def _update(old: Tensors, new: Tensors) -> WeightUpdate:
    entries = describe(new)
    manifest = WeightManifest(
        run_id="benchmark",
        weight_version=0,
        digest=version_digest(entries),
        tensors=entries,
        files=(),
        created_at=0.0,
    )
    patches = list(delta.decode(old, delta.encode(old, new)))
    return WeightUpdate(manifest, patches, frozenset(patch.name for patch in patches), 0, new)


async def measure_update(engine: Engine, versions: Versions, first_number: int = 1) -> dict[str, float]:
    """Milliseconds of standing still for a delta and for every tensor; the shortest of some."""
    versioner = Versioner(engine, versions, first_number)
    full = [(await versioner.next(full=True))[0] for _ in range(2)]  # the second leaves the older of the two
    deltas = [(await versioner.next())[0] for _ in range(REPEATS)]
    return {"apply_pause_ms": 1e3 * min(deltas), "full_reload_ms": 1e3 * min(full)}


async def tokens_per_s(engine: Engine, seconds: float, in_flight: int) -> float:
    """Tokens of the responses that end within the stretch, after a warm-up."""
    numbers, tokens = count(), 0
    until = time.monotonic() + WARM_UP_S + seconds

    async def work() -> None:
        nonlocal tokens
        while time.monotonic() < until:
            completion = await engine.generate(_task(next(numbers)), 0)
            if until - seconds <= time.monotonic() < until:
                tokens += len(completion.response_tokens)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return tokens / seconds


def _task(number: int) -> Task:
    return Task(
        task_id=f"t{number}",
        round=0,
        position=number,
        prompt_tokens=[(number * 31 + at * 7) % 251 for at in range(PROMPT_TOKENS)],
        temperature=1.0,
        max_response_tokens=RESPONSE_TOKENS,
        min_weight_version=0,
    )


@dataclass
class Costs:
    """Seconds that each update took, by what took them."""

    pauses: list[float] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    hearings: list[float] = field(default_factory=list)

    async def update(self, engine: Engine, versioner: Versioner, canaries: tuple[Canary, ...]) -> None:
        started = time.monotonic()
        pause_s, manifest = await versioner.next(canaries=canaries)
        self.pauses.append(pause_s)
        self.handovers.append(time.monotonic() - started - pause_s)
        if canaries:
            started = time.monotonic()
            await canary.describe_mismatch(engine, manifest)
            self.hearings.append(time.monotonic() - started)


async def measure_loss(
    engine: Engine,
    versions: Versions,
    sung: tuple[Canary, ...],
    *,
    seconds: float,
    every_s: float,
    in_flight: int,
    rounds: int,
) -> dict[str, float]:
    """Tokens per second without updates, with them, and with canaries, and where the difference goes."""
    versioner, costs = Versioner(engine, versions, 1000), Costs()
    rates: dict[str, list[float]] = {"alone": [], "updated": [], "heard": []}
    for _ in range(rounds):
        rates["alone"].append(await tokens_per_s(engine, seconds, in_flight))
        for name, canaries in (("updated", ()), ("heard", sung)):
            update = partial(costs.update, engine, versioner, canaries)
            rates[name].append(await _beside(update, every_s, tokens_per_s(engine, seconds, in_flight)))
    alone, updated, heard = (median(found) for found in rates.values())
    return {
        "tokens_per_s": alone,
        "tokens_per_s_updated": heard,
        "tokens_per_s_loss": 1 - heard / alone,
        "loss_without_canaries": 1 - updated / alone,
        "pause_share": median(costs.pauses) / every_s,
        "pause_ms": 1e3 * median(costs.pauses),
        "handover_ms": 1e3 * median(costs.handovers),
        "canary_ms": 1e3 * median(costs.hearings),
        "every_s": every_s,
    }


async def _beside(update: Callable[[], Awaitable[None]], every_s: float, stretch: Awaitable[float]) -> float:
    """The stretch, with an update every so often."""

    async def updating() -> None:
        while True:
            await asyncio.sleep(every_s)
            await update()

    background = asyncio.create_task(updating())
    try:
        return await stretch
    finally:
        background.cancel()
        await asyncio.wait((background,))


async def measure(model: Path, versions: Versions, *, in_flight: int, **stretches: Any) -> dict[str, Any]:
    """The JSON line."""
    from learner.model.canary import compute_canaries
    from learner.model.model_loading import load_model

    sung = compute_canaries(load_model(str(model), device="cpu"), 2)
    async with engine_on(model, versions[0], in_flight=in_flight) as engine:
        updates = await measure_update(engine, versions)
        loss = await measure_loss(engine, versions, sung, in_flight=in_flight, **stretches)
        full_bytes = sum(tensor.nbytes for tensor in versions[0].values())
        return {"model_bytes": full_bytes, "device": engine.device, **updates, **loss}


def main(argv: list[str] | None = None) -> None:
    from benchmarks.weight_versions import save_small_model, train_versions, version_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--versions", type=Path, help="folder with its versions 0 and 1; unset: trained on the spot")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=3, help="of three stretches")
    parser.add_argument("--every-s", type=float, default=2.0, help="between two updates")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        model = arguments.model or save_small_model(Path(name) / "model")
        folder = arguments.versions or Path(name) / "versions"
        train_versions(arguments.model, None, folder, learning_rate=1e-7, keep=(0, 1))
        parent, child = (read_safetensors(version_path(folder, version)) for version in (0, 1))
        stretches = {name: getattr(arguments, name) for name in ("seconds", "every_s", "in_flight", "rounds")}
        result = asyncio.run(measure(model, (parent, child), **stretches))
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
