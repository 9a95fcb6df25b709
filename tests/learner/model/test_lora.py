"""Adapters are all that is trained; what is published is the merged model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.config import LoraConfig
from learner.model.lora import adapter_bytes, factors, merge_adapter
from learner.model.model_loading import load_model
from learner.model.packing import Sequence, pack_sequences
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import TORCH_DTYPES, wire_adapters, wire_tensors
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from services.contracts import FileKind
from services.errors import ConfigError, ModelError
from services.tensors import RawTensor, write_safetensors
from services.weights.adapters import Adapter, decode, pack
from services.weights.chain import patch
from tests.support import tiny_models
from tests.support.endpoint import open_store
from tests.support.ranks_together import together
from tests.support.weight_samples import bits

ADAPTERS = LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_published_weights_are_the_merged_ones(tmp_path: Path, family: tiny_models.Family) -> None:
    """Loaded like any other checkpoint, they compute what the learner's model computes."""
    base = tiny_models.save(tmp_path / "base", tiny_models.config(family))
    model = load_model(str(base), device="cpu", adapters=ADAPTERS)
    before = wire_tensors(model)
    Trainer(model, tiny_models.training(learning_rate=1e-2)).train_round(tiny_models.samples())
    after = wire_tensors(model)
    changed = {name for name in after if not np.array_equal(after[name].data, before[name].data)}
    layers = [f"model.layers.{number}" for number in range(2)]
    assert changed == {f"{layer}.{name}.weight" for layer in layers for name in ("self_attn.q_proj", "mlp.down_proj")}

    write_safetensors(base / "model.safetensors", after)
    merged = load_model(str(base), device="cpu")
    batch = pack_sequences([Sequence(r.prompt_tokens, r.response_tokens) for r in tiny_models.rollouts(3, seed=5)])
    with torch.no_grad():
        ours, theirs = (
            m.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs for m in (model, merged)
        )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_at_the_start_the_model_is_the_base_model(tmp_path: Path) -> None:
    base = tiny_models.save(tmp_path, dtype=torch.bfloat16)
    plain, adapted = (wire_tensors(load_model(str(base), device="cpu", adapters=a)) for a in (None, ADAPTERS))
    assert plain.keys() == adapted.keys()
    assert all(np.array_equal(plain[name].data, adapted[name].data) for name in plain)


def test_only_adapters_are_trained_and_saved(tmp_path: Path) -> None:
    base = tiny_models.save(tmp_path / "base")
    model = load_model(str(base), device="cpu", adapters=LoraConfig(rank=2))
    trainer = Trainer(model, tiny_models.training())
    trainer.train_round(tiny_models.samples())
    state = trainer.state_dict()
    assert all(".lora_" in name for name in state if name.startswith("model."))
    weights = sum(t.nbytes for name, t in state.items() if name.startswith("model."))
    assert weights == adapter_bytes(model.module) < 0.2 * sum(p.nbytes for p in model.module.parameters())
    frozen = AutoModelForCausalLM.from_pretrained(base).get_parameter("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(model.module.get_parameter("model.layers.0.mlp.up_proj.base_layer.weight"), frozen)

    checkpoints = Checkpoints(tmp_path / "checkpoints", "run", keep=1)
    checkpoints.save(1, state)
    successor = Trainer(load_model(str(base), device="cpu", adapters=LoraConfig(rank=2)), tiny_models.training())
    found = checkpoints.load()
    assert found is not None
    successor.load_state_dict(found.tensors)
    assert (
        successor.train_round(tiny_models.samples(seed=1)).loss == trainer.train_round(tiny_models.samples(seed=1)).loss
    )


def test_a_target_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets = sideways"):
        tiny_models.load(tmp_path, adapters=LoraConfig(rank=2, targets=("sideways",)))


def test_an_adapter_that_would_not_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names the head"):
        tiny_models.load(
            tmp_path, tiny_models.config("llama"), adapters=LoraConfig(rank=2, targets=("q_proj", "lm_head"))
        )


def layer_of(a: torch.Tensor, b: torch.Tensor, scaling: float) -> SimpleNamespace:
    """What `learner.model.lora` reads of a layer with an adapter."""
    a_part, b_part = ({"default": SimpleNamespace(weight=part)} for part in (a, b))
    return SimpleNamespace(lora_A=a_part, lora_B=b_part, scaling={"default": scaling})


def raw(tensor: torch.Tensor, wire: str) -> RawTensor:
    return RawTensor(wire, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("wire", ["BF16", "F16", "F32"])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 700), st.integers(1, 300)),
    seed=st.integers(0, 1 << 30),
    alpha=st.floats(1e-3, 1e3),
    size=st.sampled_from([1e-30, 1e-6, 1e-2, 1.0, 1e3]),
)
def test_numpy_merges_the_same_bits_as_the_learner_publishes(
    wire: str, shape: tuple[int, int, int], seed: int, alpha: float, size: float
) -> None:
    """For zeros of either sign, subnormal numbers and overflow, too."""
    rank, rows, columns = shape
    random = torch.Generator().manual_seed(seed)
    weight, b, a = (torch.randn(s, generator=random) for s in ((rows, columns), (rows, rank), (rank, columns)))
    weight.view(-1)[::7] = 0.0
    weight.view(-1)[::11] = -0.0
    weight.view(-1)[::13] *= 1e-41
    b[::3] = 0.0
    b, nothing = b * size, layer_of(a, torch.zeros_like(b), alpha / rank)
    base = {"w": raw(merge_adapter(weight, nothing, TORCH_DTYPES[wire]), wire)}
    layer = layer_of(a, b, alpha / rank)
    expected = raw(merge_adapter(weight, layer, TORCH_DTYPES[wire]), wire)
    left, right, scale = factors(layer)
    held = dict(base)
    patch(held, decode(base, held, pack({"w": Adapter(left.numpy(), right.numpy(), scale)})), set())
    assert bits(held) == bits({"w": expected})


def test_fixed_point_is_exact_to_the_last_bits_of_the_adapters() -> None:
    random = torch.Generator().manual_seed(0)
    weight, b, a = (torch.randn(shape, generator=random) for shape in ((50, 30), (50, 8), (8, 30)))
    exact = weight.double() + 0.5 * b.double() @ a.double()
    off = (merge_adapter(weight, layer_of(a, b, 0.5), torch.float32).double() - exact).abs().max()
    assert 0 < float(off) < 8 * 0.5 * 4 * 4 * 2**-14


def test_adapters_that_are_not_finite_are_not_published() -> None:
    diverged = torch.full((4, 2), float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        factors(layer_of(torch.zeros(2, 4), diverged, 1.0))


SENT = LoraConfig(rank=4, alpha=8)


def publish_a_round(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    store = open_store(folder / "weights")
    store.publish(0, wire_tensors(model), packed=wire_adapters(model))
    trainer.train_round(tiny_models.samples())
    store.publish(2, wire_tensors(model), packed=wire_adapters(model))  # without version 1 there is no delta
    write_safetensors(folder / "merged.safetensors", wire_tensors(model))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_an_update_sends_only_adapters(tmp_path: Path, ranks: int, family: tiny_models.Family) -> None:
    tiny_models.save(tmp_path / "model", tiny_models.config(family), dtype=torch.bfloat16)
    assert (
        together(publish_a_round, tmp_path, tiny_models.training(ranks=ranks, learning_rate=1e-2), SENT) == [0] * ranks
    )
    store = open_store(tmp_path / "weights")
    (sent,) = store.manifest(2).files
    assert sent.kind is FileKind.ADAPTERS
    trained = load_model(str(tmp_path / "model"), device="cpu", adapters=SENT)
    assert sent.size_bytes < adapter_bytes(trained.module), "half of it, and names that are long for layers so small"
    write_safetensors(tmp_path / "loaded.safetensors", store.load(2))
    assert (tmp_path / "loaded.safetensors").read_bytes() == (tmp_path / "merged.safetensors").read_bytes()
    assert store.manifest(0).digest != store.manifest(2).digest


def test_without_lora_there_are_no_adapters_to_send(tmp_path: Path) -> None:
    assert wire_adapters(tiny_models.load(tmp_path)) is None
