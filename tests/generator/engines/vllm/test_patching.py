"""Patches in place: through vLLM's own loaders on each rank, in pieces, and only where weights stay as loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.tensors import read_safetensors
from tests.support.live_bytes import LiveBytes
from tests.support.vllm_models import changed, torch_tensors, vllm_ranks, write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def positions_and_values(old: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = new.reshape(-1)
    positions = (old.reshape(-1).view(torch.int16) != flat.view(torch.int16)).nonzero().reshape(-1)
    return positions.to(torch.int32), flat[positions]


def bits(model: Any) -> dict[str, bytes]:
    return {
        name: parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_both_tensor_parallel_ranks_patch_qwen2_to_the_bit_in_place(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generator.engines.vllm import patching

    monkeypatch.setattr(patching, "PIECE_ELEMENTS", 100)
    write_tiny_model(tmp_path, tied=tied)
    stored = read_safetensors(tmp_path / "model.safetensors")
    old, new = torch_tensors(stored), torch_tensors(changed(stored, seed=1, share=0.3))
    with vllm_ranks(tmp_path, 2) as build:
        for rank in range(2):
            model, expected = build(rank), build(rank)
            model.load_weights(old.items())
            expected.load_weights(new.items())
            addresses = [parameter.data_ptr() for parameter in model.parameters()]
            plan = patching.PatchPlan(model)
            assert patching.patchable(model, plan, old) == old.keys()
            for turn, name in enumerate(sorted(old)):
                if turn % 3 == 0:
                    plan.replace(name, new[name])
                else:
                    plan.patch(name, *positions_and_values(old[name], new[name]))
            assert bits(model) == bits(expected)
            assert [parameter.data_ptr() for parameter in model.parameters()] == addresses


class Layer(torch.nn.Module):
    """A layer with one weight; its `loader` says how it takes it."""

    def __init__(self, loader: str = "copy") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 6, dtype=torch.bfloat16), requires_grad=False)
        self.loader = loader


class Model(torch.nn.Module):
    def __init__(self, **layers: torch.nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        for name, weight in weights:
            layer: Any = self.get_submodule(name.removesuffix(".weight"))
            layer.weight.data.copy_(weight.t().reshape(8, 6) if layer.loader == "transpose" else weight)
            loaded.add(name)
        return loaded


def checkpoint_of(*names: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"{name}.weight": torch.randn(8, 6, generator=generator).bfloat16() for name in names}


def shuffle(layer: Layer) -> None:
    """As kernels for mixtures of experts do after loading: same shape, another order."""
    layer.weight.data.copy_(layer.weight.data.reshape(4, 2, 6).transpose(0, 1).reshape(8, 6).clone())


class Shuffling:
    """A method of vLLM's that processes weights, by its protocol."""

    def process_weights_after_loading(self, layer: Layer) -> None:
        shuffle(layer)


def test_a_layer_that_shuffles_its_weights_is_not_patched_whether_its_method_is_known_or_not() -> None:
    from generator.engines.vllm.patching import PatchPlan, patchable

    named, silent, plain = Layer(), Layer(), Layer()
    named.quant_method = Shuffling()  # type: ignore[assignment]
    model = Model(named=named, silent=silent, plain=plain)
    checkpoint = checkpoint_of("named", "silent", "plain")
    model.load_weights(checkpoint.items())
    shuffle(silent)
    assert patchable(model, PatchPlan(model), checkpoint) == {"plain.weight"}


def test_a_layer_from_which_another_derives_weights_is_not_patched() -> None:
    """As multi-head latent attention absorbs a projection that is part of it, and of the layer around it."""
    from generator.engines.vllm.patching import PatchPlan, patchable

    class Attention(torch.nn.Module):
        def __init__(self, projection: Layer) -> None:
            super().__init__()
            self.projection = projection

        def process_weights_after_loading(self, dtype: torch.dtype) -> None: ...

    shared = Layer()
    model = Model(shared=shared, attention=Attention(shared), other=Attention(Layer()), plain=Layer())
    checkpoint = checkpoint_of("shared", "other.projection", "plain")
    model.load_weights(checkpoint.items())
    assert patchable(model, PatchPlan(model), checkpoint) == {"plain.weight"}


def test_weights_that_a_shuffling_layer_shares_are_not_patched() -> None:
    from generator.engines.vllm.patching import PatchPlan, patchable

    first, second = Layer(), Layer()
    second.quant_method = Shuffling()  # type: ignore[assignment]
    second.weight = first.weight
    model = Model(first=first, second=second)
    checkpoint = checkpoint_of("first")
    model.load_weights(checkpoint.items())
    assert patchable(model, PatchPlan(model), checkpoint) == set()


def test_a_loader_that_does_more_than_copy_leaves_nothing_to_patch() -> None:
    from generator.engines.vllm.patching import NotPatchableError, PatchPlan, patchable

    model = Model(turned=Layer("transpose"))
    checkpoint = checkpoint_of("turned")
    model.load_weights(checkpoint.items())
    before = bits(model)
    assert patchable(model, PatchPlan(model), checkpoint) == set()
    with pytest.raises(NotPatchableError):
        PatchPlan(model).locate({"turned.weight": ((8, 6), torch.bfloat16)})
    assert bits(model) == before


@pytest.mark.parametrize("share", [0.005, 0.05, 0.2, 0.26, 0.5])
def test_a_patch_takes_the_memory_of_a_piece_whatever_the_share(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the worst layout, where a rank holds some of every row. A piece of 7B's takes 256 MiB by this bound."""
    from generator.engines.vllm import patching

    piece, rows, columns = 1 << 12, 512, 512
    monkeypatch.setattr(patching, "PIECE_ELEMENTS", piece)
    old = torch.randn(rows, columns).bfloat16()
    new = torch.where(torch.rand(rows, columns) < share, -old, old)

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(old[:, : columns // 2].clone(), requires_grad=False)

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            for _, weight in weights:
                self.weight.data.copy_(weight.narrow(1, 0, columns // 2))

    model = Half()
    plan = patching.PatchPlan(model)
    plan.locate({"w": ((rows, columns), torch.bfloat16)})
    positions, values = positions_and_values(old, new)
    with LiveBytes() as alive:
        plan.patch("w", positions, values)
    assert torch.equal(model.weight, new[:, : columns // 2])
    assert alive.peak <= 64 * piece
    assert patching.PIECE_ELEMENTS * 64 < 1 << 30
