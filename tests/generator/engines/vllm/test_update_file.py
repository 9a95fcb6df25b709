"""What an update file contains: patches, whole tensors where those are smaller, and the layers that must reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.tensors import RawTensor, read_safetensors
from services.weights import delta
from services.weights.mirror import WeightUpdate
from tests.support.vllm_models import changed, first_tensors, update_between

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def written(update: WeightUpdate, folder: Path, patchable: set[str] | None = None) -> tuple[Any, dict[str, RawTensor]]:
    from generator.engines.vllm.update_file import write_update

    request = write_update(update, folder / "update", patchable=update.tensors if patchable is None else patchable)
    return request.update_info, read_safetensors(folder / "update")


def large_tensor(seed: int = 0) -> dict[str, RawTensor]:
    bits = np.random.default_rng(seed).integers(0, 1 << 15, 40_000).astype("<u2")
    return {"q.weight": RawTensor("BF16", (200, 200), bits.view(np.uint8))}


def flipped(tensors: dict[str, RawTensor], share: float) -> dict[str, RawTensor]:
    """Exactly so many elements differ."""
    result = {}
    for name, tensor in tensors.items():
        bits = tensor.data.view("<u2").copy()
        bits[np.random.default_rng(1).choice(bits.size, round(share * bits.size), replace=False)] ^= 1
        result[name] = RawTensor(tensor.dtype, tensor.shape, bits.view(np.uint8))
    return result


@pytest.mark.parametrize(("share", "patched"), [(0.005, True), (0.05, True), (0.2, True), (0.26, True), (0.5, False)])
def test_the_file_is_never_larger_than_the_changed_tensors(tmp_path: Path, share: float, patched: bool) -> None:
    old = large_tensor()
    new = flipped(old, share)
    info, tensors = written(update_between(1, old, new), tmp_path)
    assert bool(info["patched_shapes"]) is patched
    assert info["replaced"] == ([] if patched else ["q.weight"])
    content = sum(tensor.nbytes for tensor in tensors.values())
    assert content == min(6 * round(share * 40_000), 80_000)


def test_positions_take_four_bytes_where_that_is_enough(tmp_path: Path) -> None:
    from generator.engines.vllm.handover import INDICES

    old = large_tensor()
    _, tensors = written(update_between(1, old, flipped(old, 0.01)), tmp_path)
    assert tensors[INDICES + "q.weight"].dtype == "I32"


def test_a_chain_of_deltas_becomes_one_patch_per_tensor_with_the_newest_values(tmp_path: Path) -> None:
    from generator.engines.vllm.handover import INDICES, VALUES

    first = large_tensor()
    second, third = flipped(first, 0.05), flipped(first, 0.04)
    update = update_between(2, second, third)
    update.patches[:0] = list(delta.decode(first, delta.encode(first, second)))  # type: ignore[index]
    _, patches = written(update, tmp_path)
    bits = first["q.weight"].data.view("<u2").copy()
    bits[patches[INDICES + "q.weight"].data.view("<i4")] = patches[VALUES + "q.weight"].data.view("<u2")
    assert bits.tobytes() == third["q.weight"].data.tobytes()


@pytest.mark.parametrize("bits", [0x7FC0, 0xFF81, 0x7F80])
def test_nans_and_infinities_are_values_like_others(tmp_path: Path, bits: int) -> None:
    from generator.engines.vllm.handover import VALUES

    old = large_tensor()
    data = old["q.weight"].data.copy()
    data.view("<u2")[3] = bits
    _, patches = written(update_between(1, old, {"q.weight": RawTensor("BF16", (200, 200), data)}), tmp_path)
    assert patches[VALUES + "q.weight"].data.view("<u2").tolist() == [bits]


def layers() -> dict[str, RawTensor]:
    (tensor,) = list(first_tensors().values())[:1]
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ("q", "k")]
    return dict.fromkeys(names, tensor)


def test_without_patches_only_the_tensors_of_changed_decoder_layers_are_written(tmp_path: Path) -> None:
    old = layers()
    new = old | {"model.layers.1.q.weight": changed({"a": old["model.norm.weight"]}, seed=3)["a"]}
    info, tensors = written(update_between(1, old, new), tmp_path, set())
    assert set(tensors) == {"model.layers.1.q.weight", "model.layers.1.k.weight"}
    assert not info["patched_shapes"]
    assert not info["replaced"]


def test_a_layer_with_a_changed_tensor_that_cannot_be_patched_reloads_whole(tmp_path: Path) -> None:
    old = layers()
    other = changed({"a": old["model.norm.weight"]}, seed=3)["a"]
    new = old | dict.fromkeys(("model.layers.0.q.weight", "model.layers.1.q.weight", "model.layers.1.k.weight"), other)
    patchable = set(old) - {"model.layers.1.k.weight"}
    info, tensors = written(update_between(1, old, new), tmp_path, patchable)
    assert {"model.layers.1.q.weight", "model.layers.1.k.weight"} < set(tensors)
    assert set(info["patched_shapes"]) | set(info["replaced"]) == {"model.layers.0.q.weight"}


def test_after_a_snapshot_everything_that_changed_reloads(tmp_path: Path) -> None:
    old = layers()
    new = {name: changed({name: tensor}, seed=5)[name] for name, tensor in old.items()}
    info, tensors = written(update_between(1, old, new, sparse=False), tmp_path)
    assert set(tensors) == set(old)
    assert not info["patched_shapes"]
    assert not info["replaced"]
