"""Canaries are what the published weights compute, and computing them leaves the trained ones alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learner.config import LoraConfig
from learner.model.canary import PROMPT_TOKENS, sing
from learner.model.trained_model import TrainedModel, load_model, wire_tensors
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from services.contracts import Canary
from services.errors import ModelError
from services.weights.tensors import RawTensor, read_safetensors, write_safetensors
from tests.support import tiny_models
from tests.support.ranks_together import together

ROUNDING = 1e-5
"""Of float32 arithmetic in another order."""
ADAPTERS = LoraConfig(rank=4, alpha=8)


def moved(model: TrainedModel) -> TrainedModel:
    """With float32 weights that are no bfloat16 numbers any more."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.requires_grad:
                weight.add_(0.03 * torch.randn_like(weight))
    return model


@pytest.fixture(params=[("qwen2", None), ("llama", None), ("qwen2", ADAPTERS)], ids=["qwen2", "llama", "adapters"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedModel:
    """Published in bfloat16."""
    family, adapters = request.param
    folder = tiny_models.save(tmp_path / "model", tiny_models.config(family), dtype=torch.bfloat16)
    return moved(load_model(str(folder), device="cpu", adapters=adapters))


def sung(canaries: tuple[Canary, ...]) -> np.ndarray:
    return np.array([canary.log_probs for canary in canaries])


def assert_true(canaries: tuple[Canary, ...], folder: Path) -> None:
    """They are what transformers computes with the weights in the folder."""
    published = load_model(str(folder), device="cpu").module.train(False)
    published.set_attn_implementation("eager")
    for canary in canaries:
        tokens = torch.tensor(canary.tokens)
        with torch.no_grad():
            log_probs = published(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])
        assert log_probs[:, 0].numpy() == pytest.approx(np.array(canary.log_probs), abs=ROUNDING)


def test_they_are_what_a_reader_of_the_published_weights_computes(trained: TrainedModel) -> None:
    canaries = sing(trained, 3)
    adapters = ADAPTERS if any(not weight.requires_grad for weight in trained.module.parameters()) else None
    exact = load_model(str(trained.folder), device="cpu", wire_dtype="float32", adapters=adapters)
    exact.module.load_state_dict(trained.module.state_dict())
    assert np.abs(sung(sing(exact, 3)) - sung(canaries)).max() > 10 * ROUNDING, "the rounding is part of the song"
    write_safetensors(trained.folder / "model.safetensors", wire_tensors(trained))
    assert_true(canaries, trained.folder)


def test_a_tied_head_is_rounded_as_its_embedding_is(tmp_path: Path) -> None:
    """The embedding is stored in float32, everything else in bfloat16."""
    weights = tiny_models.save(tmp_path, dtype=torch.bfloat16) / "model.safetensors"
    tensors, name = dict(read_safetensors(weights)), "model.embed_tokens.weight"
    wide = (tensors[name].data.view("<u2").astype("<u4") << 16).view(np.uint8)
    write_safetensors(weights, tensors | {name: RawTensor("F32", tensors[name].shape, wide)})
    model = moved(load_model(str(tmp_path), device="cpu"))
    write_safetensors(weights, wire_tensors(model))
    assert_true(sing(model, 2), tmp_path)


def train_and_sing(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Canaries between two rounds, and weights before and after them."""
    trainer.train_round(tiny_models.samples())
    write_safetensors(folder / "model" / "model.safetensors", wire_tensors(model))
    songs = [canary.model_dump_json() for canary in sing(model, 2)]
    (folder / "songs.jsonl").write_text("\n".join(songs))
    write_safetensors(folder / "after.safetensors", wire_tensors(model))
    trainer.train_round(tiny_models.samples(seed=1))


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["weights", "adapters"])
def test_ranks_that_share_a_model_sing_as_one(tmp_path: Path, adapters: LoraConfig | None) -> None:
    tiny_models.save(tmp_path / "model", dtype=torch.bfloat16)
    assert together(train_and_sing, tmp_path, tiny_models.training(ranks=2, learning_rate=1e-2), adapters) == [0, 0]
    lines = (tmp_path / "songs.jsonl").read_text().splitlines()
    canaries = tuple(Canary.model_validate_json(line) for line in lines)
    assert len(canaries) == 2
    assert_true(canaries, tmp_path / "model")
    before, after = (tmp_path / "model" / "model.safetensors", tmp_path / "after.safetensors")
    assert before.read_bytes() == after.read_bytes()


def test_the_trained_weights_and_their_mode_stay_as_they_are(trained: TrainedModel) -> None:
    before = {name: weight.clone() for name, weight in trained.module.state_dict().items()}
    sing(trained, 2)
    after = trained.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trained.module.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in trained.module.modules())


def test_prompts_are_the_same_every_time_and_differ_from_each_other(trained: TrainedModel) -> None:
    first = sing(trained, 2)
    assert first == sing(trained, 2)
    assert len({canary.tokens for canary in first}) == 2
    assert all(len(canary.tokens) == PROMPT_TOKENS and max(canary.tokens) < tiny_models.VOCABULARY for canary in first)


def test_none_are_asked_for(trained: TrainedModel) -> None:
    assert sing(trained, 0) == ()


def test_a_model_that_computes_no_numbers_is_not_published(trained: TrainedModel) -> None:
    with torch.no_grad():
        next(trained.module.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        sing(trained, 1)
