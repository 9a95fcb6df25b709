"""Adapters are all that is trained; what is published is the merged model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.checkpoint import Checkpoints
from learner.config import LoraConfig
from learner.lora import adapter_bytes
from learner.model import load_model, wire_tensors
from learner.objectives import Targets, nll
from learner.packing import Sequence, lay_out
from learner.trainer import Trainer
from services.errors import ConfigError
from services.weights.tensors import write_safetensors
from tests.learner import tiny

ADAPTERS = LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_published_weights_are_the_merged_ones(tmp_path: Path, family: tiny.Family) -> None:
    """They say what the learner's model says, loaded as any other checkpoint is."""
    base = tiny.save(tmp_path / "base", tiny.config(family))
    model = load_model(str(base), device="cpu", adapters=ADAPTERS)
    before = wire_tensors(model)
    Trainer(model, tiny.training(learning_rate=1e-2)).train_round(tiny.rollouts())
    after = wire_tensors(model)
    changed = {name for name in after if not np.array_equal(after[name].data, before[name].data)}
    layers = [f"model.layers.{number}" for number in range(2)]
    assert changed == {f"{layer}.{name}.weight" for layer in layers for name in ("self_attn.q_proj", "mlp.down_proj")}

    write_safetensors(base / "model.safetensors", after)
    merged = load_model(str(base), device="cpu")
    batch = lay_out([Sequence(r.prompt_tokens, r.response_tokens) for r in tiny.rollouts(3, seed=5)])
    with torch.no_grad():
        ours, theirs = (m.losses(batch, nll, Targets(batch.targets), 1.0).log_probs for m in (model, merged))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_at_the_start_the_model_is_the_base_model(tmp_path: Path) -> None:
    base = tiny.save(tmp_path, dtype=torch.bfloat16)
    plain, adapted = (wire_tensors(load_model(str(base), device="cpu", adapters=a)) for a in (None, ADAPTERS))
    assert plain.keys() == adapted.keys()
    assert all(np.array_equal(plain[name].data, adapted[name].data) for name in plain)


def test_only_adapters_are_trained_and_remembered(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    model = load_model(str(base), device="cpu", adapters=LoraConfig(rank=2))
    trainer = Trainer(model, tiny.training())
    trainer.train_round(tiny.rollouts())
    state = trainer.state_dict()
    assert all(".lora_" in name for name in state if name.startswith("model."))
    weights = sum(t.nbytes for name, t in state.items() if name.startswith("model."))
    assert weights == adapter_bytes(model.module) < 0.2 * sum(p.nbytes for p in model.module.parameters())
    frozen = AutoModelForCausalLM.from_pretrained(base).get_parameter("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(model.module.get_parameter("model.layers.0.mlp.up_proj.base_layer.weight"), frozen)

    checkpoints = Checkpoints(tmp_path / "checkpoints", "run", keep=1)
    checkpoints.save(1, state)
    successor = Trainer(load_model(str(base), device="cpu", adapters=LoraConfig(rank=2)), tiny.training())
    found = checkpoints.load()
    assert found is not None
    successor.load_state_dict(found.tensors)
    assert successor.train_round(tiny.rollouts(seed=1)).loss == trainer.train_round(tiny.rollouts(seed=1)).loss


def test_a_layer_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets = sideways"):
        tiny.load(tmp_path, adapters=LoraConfig(rank=2, targets=("sideways",)))


def test_an_adapter_that_would_not_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names the head"):
        tiny.load(tmp_path, tiny.config("llama"), adapters=LoraConfig(rank=2, targets=("q_proj", "lm_head")))
