"""Canaries are computed with the published weights, and leave the trained weights as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MistralConfig

from learner.config import LoraConfig
from learner.model.canary import PROMPT_TOKENS, compute_canaries
from learner.model.model_loading import load_model
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import wire_tensors
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from services.contracts import Canary
from services.errors import ModelError
from services.tensors import RawTensor, read_safetensors, write_safetensors
from tests.support import tiny_models
from tests.support.ranks_together import together

ROUNDING = 1e-5
"""Rounding of float32 arithmetic in another order."""
ADAPTERS = LoraConfig(rank=4, alpha=8)


def moved(model: TrainedModel) -> TrainedModel:
    """The model with float32 weights that are not bfloat16 numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.requires_grad:
                weight.add_(0.03 * torch.randn_like(weight))
    return model


@pytest.fixture(params=[("qwen2", None), ("llama", None), ("qwen2", ADAPTERS)], ids=["qwen2", "llama", "adapters"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedModel:
    """A trained model that is published in bfloat16."""
    family, adapters = request.param
    folder = tiny_models.save(tmp_path / "model", tiny_models.config(family), dtype=torch.bfloat16)
    return moved(load_model(str(folder), device="cpu", adapters=adapters))


def log_probs_of(canaries: tuple[Canary, ...]) -> np.ndarray:
    return np.array([canary.log_probs for canary in canaries])


def assert_true(canaries: tuple[Canary, ...], folder: Path) -> None:
    """Assert that transformers computes the canaries with the weights in the folder."""
    published = load_model(str(folder), device="cpu").module.train(False)
    published.set_attn_implementation("eager")
    for canary in canaries:
        tokens = torch.tensor(canary.tokens)
        with torch.no_grad():
            log_probs = published(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])
        assert log_probs[:, 0].numpy() == pytest.approx(np.array(canary.log_probs), abs=ROUNDING)


def test_canaries_are_what_a_reader_of_the_published_weights_computes(trained: TrainedModel) -> None:
    canaries = compute_canaries(trained, 3)
    adapters = ADAPTERS if any(not weight.requires_grad for weight in trained.module.parameters()) else None
    exact = load_model(str(trained.folder), device="cpu", wire_dtype="float32", adapters=adapters)
    exact.module.load_state_dict(trained.module.state_dict())
    assert np.abs(log_probs_of(compute_canaries(exact, 3)) - log_probs_of(canaries)).max() > 10 * ROUNDING, (
        "canaries are computed with rounded weights"
    )
    write_safetensors(trained.folder / "model.safetensors", wire_tensors(trained))
    assert_true(canaries, trained.folder)


def test_a_tied_head_is_rounded_like_its_embedding(tmp_path: Path) -> None:
    """The embedding is stored in float32, everything else in bfloat16."""
    weights = tiny_models.save(tmp_path, dtype=torch.bfloat16) / "model.safetensors"
    tensors, name = dict(read_safetensors(weights)), "model.embed_tokens.weight"
    wide = (tensors[name].data.view("<u2").astype("<u4") << 16).view(np.uint8)
    write_safetensors(weights, tensors | {name: RawTensor("F32", tensors[name].shape, wide)})
    model = moved(load_model(str(tmp_path), device="cpu"))
    write_safetensors(weights, wire_tensors(model))
    assert_true(compute_canaries(model, 2), tmp_path)


def train_and_compute_canaries(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Canaries between two rounds, and weights before and after them."""
    trainer.train_round(tiny_models.samples())
    write_safetensors(folder / "model" / "model.safetensors", wire_tensors(model))
    canaries = [canary.model_dump_json() for canary in compute_canaries(model, 2)]
    (folder / "canaries.jsonl").write_text("\n".join(canaries))
    write_safetensors(folder / "after.safetensors", wire_tensors(model))
    trainer.train_round(tiny_models.samples(seed=1))


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["weights", "adapters"])
def test_ranks_that_share_a_model_compute_the_same_canaries(tmp_path: Path, adapters: LoraConfig | None) -> None:
    tiny_models.save(tmp_path / "model", dtype=torch.bfloat16)
    assert together(
        train_and_compute_canaries, tmp_path, tiny_models.training(ranks=2, learning_rate=1e-2), adapters
    ) == [0, 0]
    lines = (tmp_path / "canaries.jsonl").read_text().splitlines()
    canaries = tuple(Canary.model_validate_json(line) for line in lines)
    assert len(canaries) == 2
    assert_true(canaries, tmp_path / "model")
    before, after = (tmp_path / "model" / "model.safetensors", tmp_path / "after.safetensors")
    assert before.read_bytes() == after.read_bytes()


def test_the_trained_weights_and_their_mode_stay_as_they_are(trained: TrainedModel) -> None:
    before = {name: weight.clone() for name, weight in trained.module.state_dict().items()}
    compute_canaries(trained, 2)
    after = trained.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trained.module.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in trained.module.modules())


def test_prompts_are_the_same_every_time_and_differ_from_each_other(trained: TrainedModel) -> None:
    first = compute_canaries(trained, 2)
    assert first == compute_canaries(trained, 2)
    assert len({canary.tokens for canary in first}) == 2
    assert all(len(canary.tokens) == PROMPT_TOKENS and max(canary.tokens) < tiny_models.VOCABULARY for canary in first)


def test_the_last_canaries_pass_the_lengths_at_which_the_model_changes(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path / "model", MistralConfig(**tiny_models.SHAPE, sliding_window=24))
    canaries = compute_canaries(model, 3)
    assert [len(canary.tokens) for canary in canaries] == [PROMPT_TOKENS, 32, 40]
    assert [len(canary.tokens) for canary in compute_canaries(model, 2)] == [PROMPT_TOKENS, 40]
    assert [len(canary.tokens) for canary in compute_canaries(model, 1)] == [40]
    assert_true(canaries, model.folder)


def test_there_may_be_no_canaries(trained: TrainedModel) -> None:
    assert compute_canaries(trained, 0) == ()


def test_a_model_that_computes_nan_is_not_published(trained: TrainedModel) -> None:
    with torch.no_grad():
        next(trained.module.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        compute_canaries(trained, 1)
