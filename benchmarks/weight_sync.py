"""Bytes and speed of the weight delta on real successive versions, against its entropy bound and a memcpy.

    python -m benchmarks.weight_sync --model PATH --texts gsm8k_train.jsonl --engine --json

Trains the model for a few updates at each learning rate, then measures chosen updates. Without `--model`, a small model
trained on the spot in full precision. `--versions` keeps the trained versions for the next time. `--engine` also lays
the last update of each rate over a real vLLM engine. `--synthetic 1.5` adds a set of 1.5 billion parameters, which are
made, encoded and decoded tensor by tensor. `--lora-rank 16` trains adapters, and measures what they alone would take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zstandard

from benchmarks.entropy import entropy_bound_bytes
from services.tensors import RawTensor, Tensors, read_safetensors
from services.weights.delta import apply, decode, encode
from services.weights.publisher import WeightPublisher

LEARNING_RATES = (1e-7, 1e-6, 1e-5)
REPEATS = 3
SYNTHETIC_TENSOR = (1536, 8960)

Result = TypeVar("Result")


def best_of(function: Callable[[], Result], repeats: int = REPEATS) -> tuple[Result, float]:
    """(result, seconds of the fastest call)."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def in_memory(tensors: Tensors) -> dict[str, RawTensor]:
    return {name: RawTensor(tensor.dtype, tensor.shape, tensor.data.copy()) for name, tensor in tensors.items()}


def measure(parent: Tensors, child: Tensors) -> dict[str, Any]:
    """One update's numbers; speeds count the bytes of the full model."""
    full_bytes = sum(tensor.nbytes for tensor in parent.values())
    delta, encode_s = best_of(lambda: encode(parent, child))
    patches, decode_s = best_of(lambda: list(decode(parent, delta)))
    target, memcpy_s = best_of(lambda: in_memory(parent))
    start = time.perf_counter()
    for patch in patches:
        apply(patch, target[patch.name].data)
    apply_s = time.perf_counter() - start
    bound = entropy_bound_bytes(parent, child)
    return {
        "delta_bytes": len(delta),
        "full_bytes": full_bytes,
        "ratio": len(delta) / full_bytes,
        "changed_ratio": sum(patch.indices.size for patch in patches) / max(1, _elements(parent)),
        "entropy_bound_bytes": round(bound),
        "over_entropy": len(delta) / bound if bound else None,
        "encode_gb_per_s": full_bytes / encode_s / 1e9,
        "decode_gb_per_s": full_bytes / decode_s / 1e9,
        "memcpy_gb_per_s": full_bytes / memcpy_s / 1e9,
        "host_apply_ms": 1e3 * apply_s,
        "bit_exact": all(np.array_equal(target[name].data, child[name].data) for name in child),
    }


def _elements(tensors: Tensors) -> int:
    return sum(tensor.nbytes // tensor.item_bytes for tensor in tensors.values())


def measure_publish(parent: Tensors, child: Tensors) -> float:
    """Seconds from tensors in memory to a version that is durable on disk and visible."""
    with tempfile.TemporaryDirectory() as folder:
        store = WeightPublisher(Path(folder), "benchmark")
        store.publish(0, parent)
        start = time.perf_counter()
        store.publish(1, child)
        return time.perf_counter() - start


def measure_adapters(parent: Tensors, child: Tensors) -> dict[str, Any]:
    """Bytes of float32 adapters alone, and rounded to bf16: as they are, compressed, and as a delta."""
    numbers: dict[str, Any] = {}
    for kind, old, new in (("f32", parent, child), ("bf16", _rounded(parent), _rounded(child))):
        numbers[f"adapters_{kind}_bytes"] = sum(tensor.nbytes for tensor in new.values())
        numbers[f"adapters_{kind}_zstd_bytes"] = sum(len(zstandard.compress(t.data.data, 3)) for t in new.values())
        numbers[f"adapters_{kind}_delta_bytes"] = len(encode(old, new))
    return numbers


def _rounded(tensors: Tensors) -> dict[str, RawTensor]:
    return {
        name: RawTensor("BF16", tensor.shape, _round(tensor.data.view(np.float32)).view(np.uint8))
        for name, tensor in tensors.items()
    }


def measure_rate(folder: Path, updates: list[int]) -> dict[str, Any]:
    """The last update's numbers, and all of them under `updates`."""
    from benchmarks.weight_versions import adapters_path, version_path

    measured: dict[str, dict[str, Any]] = {}
    for update in updates:
        parent, child = (in_memory(read_safetensors(version_path(folder, v))) for v in (update - 1, update))
        measured[str(update)] = measure(parent, child)
        if adapters_path(folder, update).exists():
            adapters = (in_memory(read_safetensors(adapters_path(folder, v))) for v in (update - 1, update))
            measured[str(update)] |= measure_adapters(*adapters)
    return {**measured[str(updates[-1])], "publish_s": measure_publish(parent, child), "updates": measured}


def measure_synthetic(billions: float) -> dict[str, Any]:
    """One update's numbers, for a set that is made and measured a tensor at a time: what a model of that size costs,
    in the memory of one tensor. In a real delta, too, each tensor is a part of its own.
    """
    sums: dict[str, float] = {}
    seconds = {"encode": 0.0, "decode": 0.0, "memcpy": 0.0}
    exact = True
    for layer in range(int(billions * 1e9) // math.prod(SYNTHETIC_TENSOR)):
        numbers = measure(*synthetic_layer(layer))
        for name in ("delta_bytes", "full_bytes", "entropy_bound_bytes", "host_apply_ms"):
            sums[name] = sums.get(name, 0) + numbers[name]
        for name in seconds:
            seconds[name] += numbers["full_bytes"] / numbers[f"{name}_gb_per_s"] / 1e9
        exact = exact and numbers["bit_exact"]
    rates = {f"{name}_gb_per_s": sums["full_bytes"] / spent / 1e9 for name, spent in seconds.items()}
    return {
        **sums,
        "ratio": sums["delta_bytes"] / sums["full_bytes"],
        "over_entropy": sums["delta_bytes"] / sums["entropy_bound_bytes"],
        **rates,
        "bit_exact": exact,
    }


def synthetic_pair(parameters: int) -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    """A set of such layers, whole in memory."""
    parent: dict[str, RawTensor] = {}
    child: dict[str, RawTensor] = {}
    for layer in range(parameters // math.prod(SYNTHETIC_TENSOR)):
        old, new = synthetic_layer(layer)
        parent, child = parent | old, child | new
    return parent, child


def synthetic_layer(layer: int) -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    """Normal bf16 weights and what steps of about 1e-7 make of them: for size, not for statistics."""
    rng = np.random.default_rng(layer)
    old = rng.standard_normal(math.prod(SYNTHETIC_TENSOR), dtype=np.float32) * np.float32(0.02)
    old_bits = _round(old)
    exact = (old_bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    moved = exact + rng.standard_normal(old.size, dtype=np.float32) * np.float32(1e-7)
    name = f"layers.{layer}.weight"
    return (
        {name: RawTensor("BF16", SYNTHETIC_TENSOR, old_bits.view(np.uint8))},
        {name: RawTensor("BF16", SYNTHETIC_TENSOR, _round(moved).view(np.uint8))},
    )


def _round(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """To bf16; ties go up, which no statistic here can tell from ties to even."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--texts", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--versions", type=Path, help="folder to keep trained versions in and reuse them from")
    parser.add_argument("--measure", default="1,2,10,20", help="updates to measure, ascending")
    parser.add_argument("--rates", default=",".join(f"{rate:.0e}" for rate in LEARNING_RATES))
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank, and measure them too")
    parser.add_argument("--synthetic", type=float, default=0.0, help="add a set of so many billion parameters")
    parser.add_argument("--engine", action="store_true", help="measure the last updates on a real vLLM engine too")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    updates = [int(number) for number in arguments.measure.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        results = _measure_all(arguments, updates, arguments.versions or Path(temporary))
    for rate, result in results.items():
        for update, numbers in result.get("updates", {"1": result}).items():
            print(f"{rate} update {update}: {_line(numbers)}")
    if arguments.json:
        print(json.dumps(results))


def _measure_all(arguments: argparse.Namespace, updates: list[int], versions: Path) -> dict[str, dict[str, Any]]:
    from benchmarks.weight_versions import train_versions

    keep = sorted({version for update in updates for version in (update - 1, update)})
    results = {}
    for rate in arguments.rates.split(","):
        folder = versions / rate
        train_versions(
            arguments.model,
            arguments.texts,
            folder,
            learning_rate=float(rate),
            keep=keep,
            lora_rank=arguments.lora_rank,
        )
        results[rate] = measure_rate(folder, updates)
    if arguments.engine:
        for rate, pauses in asyncio.run(_measure_engine(arguments.model, versions, list(results), updates[-1])).items():
            results[rate] |= pauses
    if arguments.synthetic:
        results["synthetic"] = measure_synthetic(arguments.synthetic)
    return results


async def _measure_engine(
    model: Path | None, versions: Path, rates: list[str], update: int
) -> dict[str, dict[str, float]]:
    """Pauses of that update at each rate, by one engine."""
    from benchmarks.weight_engine import engine_on, measure_update
    from benchmarks.weight_versions import save_small_model, version_path

    def pair(rate: str) -> tuple[Tensors, Tensors]:
        parent, child = (read_safetensors(version_path(versions / rate, number)) for number in (update - 1, update))
        return parent, child

    with tempfile.TemporaryDirectory() as name:
        folder = model or save_small_model(Path(name) / "model")
        async with engine_on(folder, pair(rates[0])[0], in_flight=16) as engine:
            return {
                rate: await measure_update(engine, pair(rate), first_number=1 + 100 * number)
                for number, rate in enumerate(rates)
            }


def _line(numbers: dict[str, Any]) -> str:
    over = numbers["over_entropy"]
    return (
        f"{numbers['delta_bytes']:,} bytes, {numbers['ratio']:.4%} of full, {over or 0:.3f} of the bound, "
        f"encode {numbers['encode_gb_per_s']:.2f} GB/s, decode {numbers['decode_gb_per_s']:.2f} GB/s, "
        f"memcpy {numbers['memcpy_gb_per_s']:.2f} GB/s, exact {numbers['bit_exact']}"
    )


if __name__ == "__main__":
    main()
