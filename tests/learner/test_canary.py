"""Canaries are what the published weights compute, and computing them leaves the trained ones alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learner.canary import PROMPT_TOKENS, sing
from learner.model import TrainedModel, load_model, wire_tensors
from services.contracts import Canary
from services.errors import ModelError
from services.weights.tensors import write_safetensors
from tests.learner import tiny

ROUNDING = 1e-5
"""Of float32 arithmetic in another order."""


@pytest.fixture(params=["qwen2", "llama"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedModel:
    """Published in bfloat16, with float32 weights that are no bfloat16 numbers any more."""
    model = load_model(
        str(tiny.save(tmp_path / "model", tiny.config(request.param), dtype=torch.bfloat16)), device="cpu"
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1 + 0.003 * torch.randn_like(weight))
    return model


def sung(canaries: tuple[Canary, ...]) -> np.ndarray:
    return np.array([canary.log_probs for canary in canaries])


def test_they_are_what_a_reader_of_the_published_weights_computes(trained: TrainedModel, tmp_path: Path) -> None:
    canaries = sing(trained, 3)
    write_safetensors(trained.folder / "model.safetensors", wire_tensors(trained))
    published = load_model(str(trained.folder), device="cpu").module.train(False)
    published.set_attn_implementation("eager")
    for canary in canaries:
        tokens = torch.tensor(canary.tokens)
        with torch.no_grad():
            log_probs = published(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])
        assert log_probs[:, 0].numpy() == pytest.approx(np.array(canary.log_probs), abs=ROUNDING)
    exact = load_model(str(trained.folder), device="cpu", wire_dtype="float32")
    exact.module.load_state_dict(trained.module.state_dict())
    assert np.abs(sung(sing(exact, 3)) - sung(canaries)).max() > 10 * ROUNDING, "the rounding is part of the song"


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
    assert all(len(canary.tokens) == PROMPT_TOKENS and max(canary.tokens) < tiny.VOCABULARY for canary in first)


def test_none_are_asked_for(trained: TrainedModel) -> None:
    assert sing(trained, 0) == ()


def test_a_model_that_computes_no_numbers_is_not_published(trained: TrainedModel) -> None:
    with torch.no_grad():
        next(trained.module.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        sing(trained, 1)
