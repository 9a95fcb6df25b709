"""The worker's half without a worker: patches and whole tensors from a file into a model with a fused layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from services.weights import delta
from services.weights.tensors import RawTensor, write_safetensors
from tests.support.vllm_models import changed, update_between

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def first_tensors() -> dict[str, RawTensor]:
    random = np.random.default_rng(0)
    halves = random.standard_normal((3, 24)).astype("<f4").view("<u4") >> 16
    return {
        name: RawTensor("BF16", (6, 4), bits.astype("<u2").view(np.uint8))
        for name, bits in zip(("q.weight", "k.weight", "o.weight"), halves, strict=True)
    }


def bits_of(fused: object, other: object) -> dict[str, bytes]:
    import torch

    assert isinstance(fused, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    parts = {"q.weight": fused[:6], "k.weight": fused[6:], "o.weight": other}
    return {name: part.contiguous().view(torch.uint8).numpy().tobytes() for name, part in parts.items()}


def test_patches_change_the_parameters_in_place_to_the_bit(tmp_path: Path) -> None:
    import torch

    from generator.engines.vllm import sparse_patches
    from generator.engines.vllm_worker import FileWeightTransfer

    class Model(torch.nn.Module):
        """q and k lie in one parameter, as in vLLM's attention layers."""

        def __init__(self) -> None:
            super().__init__()
            self.fused = torch.nn.Parameter(torch.empty(12, 4, dtype=torch.bfloat16), requires_grad=False)
            self.other = torch.nn.Parameter(torch.empty(6, 4, dtype=torch.bfloat16), requires_grad=False)

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            slots = {"q.weight": self.fused[:6], "k.weight": self.fused[6:], "o.weight": self.other}
            return {name for name, weight in weights if slots[name].copy_(weight) is not None}

    old = first_tensors()
    model = Model()
    model.load_weights(
        (name, torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=torch.bfloat16).view(tensor.shape))
        for name, tensor in old.items()
    )
    addresses = model.fused.data_ptr(), model.other.data_ptr()
    vllm_config = SimpleNamespace(parallel_config=None, model_config=None)
    engine = FileWeightTransfer(None, vllm_config, torch.device("cpu"), model)

    new = changed(old, seed=1, share=0.3)
    update = update_between(1, old, new)
    patches = sparse_patches(update)
    assert patches is not None
    write_safetensors(tmp_path / "update", patches)
    shapes = {name: list(new[name].shape) for name in update.changed}
    engine.receive_weights(engine.parse_update_info({"path": str(tmp_path / "update"), "patched_shapes": shapes}))

    assert bits_of(model.fused, model.other) == {name: tensor.data.tobytes() for name, tensor in new.items()}
    assert (model.fused.data_ptr(), model.other.data_ptr()) == addresses


def test_a_chain_of_deltas_becomes_one_patch_per_tensor_with_the_newest_values() -> None:
    from generator.engines.handover import INDICES, VALUES
    from generator.engines.vllm import sparse_patches

    first = first_tensors()
    second = changed(first, seed=1, share=0.5)
    third = changed(second, seed=2, share=0.5)
    update = update_between(2, second, third)
    update.patches[:0] = list(delta.decode(first, delta.encode(first, second)))  # type: ignore[index]
    patches = sparse_patches(update)
    assert patches is not None
    for name, tensor in first.items():
        bits = tensor.data.view("<u2").copy()
        bits[patches[INDICES + name].data.view("<i8")] = patches[VALUES + name].data.view("<u2")
        assert bits.tobytes() == third[name].data.tobytes()


@pytest.mark.parametrize("bits", [0x7FC0, 0xFF81])
def test_a_new_nan_travels_as_a_whole_tensor(bits: int) -> None:
    from generator.engines.vllm import sparse_patches

    old = first_tensors()
    data = old["q.weight"].data.copy()
    data.view("<u2")[3] = bits
    assert sparse_patches(update_between(1, old, old | {"q.weight": RawTensor("BF16", (6, 4), data)})) is None


def test_an_infinity_can_be_patched() -> None:
    from generator.engines.vllm import sparse_patches

    old = first_tensors()
    data = old["q.weight"].data.copy()
    data.view("<u2")[3] = 0x7F80
    assert sparse_patches(update_between(1, old, old | {"q.weight": RawTensor("BF16", (6, 4), data)})) is not None


def test_only_decoder_layers_that_changed_are_handed_over() -> None:
    from generator.engines.vllm import changed_groups

    (tensor,) = list(first_tensors().values())[:1]
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ("q", "k")]
    old = dict.fromkeys(names, tensor)
    new = old | {"model.layers.1.q.weight": changed({"a": tensor}, seed=3)["a"]}
    assert set(changed_groups(update_between(1, old, new))) == {"model.layers.1.q.weight", "model.layers.1.k.weight"}
