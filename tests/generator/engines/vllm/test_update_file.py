"""What an update file contains: patches where they can express the change, else the changed layers."""

from __future__ import annotations

import pytest

from services.tensors import RawTensor
from services.weights import delta
from tests.support.vllm_models import changed, first_tensors, update_between

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def test_a_chain_of_deltas_becomes_one_patch_per_tensor_with_the_newest_values() -> None:
    from generator.engines.vllm.handover import INDICES, VALUES
    from generator.engines.vllm.update_file import sparse_patches

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
def test_a_new_nan_needs_a_whole_tensor(bits: int) -> None:
    from generator.engines.vllm.update_file import sparse_patches

    old = first_tensors()
    data = old["q.weight"].data.copy()
    data.view("<u2")[3] = bits
    assert sparse_patches(update_between(1, old, old | {"q.weight": RawTensor("BF16", (6, 4), data)})) is None


def test_an_infinity_can_be_patched() -> None:
    from generator.engines.vllm.update_file import sparse_patches

    old = first_tensors()
    data = old["q.weight"].data.copy()
    data.view("<u2")[3] = 0x7F80
    assert sparse_patches(update_between(1, old, old | {"q.weight": RawTensor("BF16", (6, 4), data)})) is not None


def test_only_the_tensors_of_changed_decoder_layers_are_written() -> None:
    from generator.engines.vllm.update_file import changed_groups

    (tensor,) = list(first_tensors().values())[:1]
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ("q", "k")]
    old = dict.fromkeys(names, tensor)
    new = old | {"model.layers.1.q.weight": changed({"a": tensor}, seed=3)["a"]}
    assert set(changed_groups(update_between(1, old, new))) == {"model.layers.1.q.weight", "model.layers.1.k.weight"}
