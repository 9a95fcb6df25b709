"""Packed attention: each sequence as if it were alone, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.attention import packed_attention, packing_arguments
from learner.model.model_loading import load_model
from learner.model.packing import MicroBatch, Sequence, pack_sequences
from services.errors import ModelError
from tests.support import tiny_models

LENGTHS = (5, 1, 9, 3)


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> MicroBatch:
    generator = np.random.default_rng(seed)
    return pack_sequences(
        [Sequence(tiny_models.tokens(generator, n), tiny_models.tokens(generator, 1)) for n in lengths]
    )


def states(heads: int, seed: int) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), 8, generator=torch.Generator().manual_seed(seed))


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Softmax over an explicit block-causal mask."""
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(owner.numel())
    allowed = (owner[:, None] == owner[None]) & (place[:, None] >= place[None])
    if window is not None:
        allowed &= place[:, None] - place[None] < window
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).transpose(-1, -2) * 0.3
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_attention_is_block_causal(key_heads: int, window: int | None) -> None:
    q, k, v = states(4, 1), states(key_heads, 2), states(key_heads, 3)
    out, _ = packed_attention(
        torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window, **packing_arguments(batch_of(LENGTHS))
    )
    torch.testing.assert_close(out, reference(q, k, v, window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_sequence_does_not_depend_on_its_neighbours(tmp_path: Any, family: tiny_models.Family) -> None:
    """Change one sequence: the log-probs of all others stay the same bits, and so do gradients at their inputs."""
    model = tiny_models.load(tmp_path, tiny_models.config(family))
    generator = np.random.default_rng(0)
    sequences = [Sequence(tiny_models.tokens(generator, 4), tiny_models.tokens(generator, n)) for n in (6, 3, 8)]
    changed = [*sequences]
    changed[1] = Sequence(tiny_models.tokens(generator, 4), tiny_models.tokens(generator, 3))

    def log_probs(batch: MicroBatch) -> torch.Tensor:
        return model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs

    before, after = log_probs(pack_sequences(sequences)), log_probs(pack_sequences(changed))
    others = torch.tensor([*range(6), *range(9, 17)])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[6:9], after[6:9])


def test_no_gradient_reaches_a_neighbour() -> None:
    q, k, v = (states(4, seed).requires_grad_() for seed in (1, 2, 3))
    out, _ = packed_attention(torch.nn.Identity(), q, k, v, None, **packing_arguments(batch_of(LENGTHS)))
    out[:, 6:15].sum().backward()  # type: ignore[no-untyped-call]
    for leaf in (q, k, v):
        assert leaf.grad is not None
        assert not leaf.grad[:, :, :6].any()
        assert not leaf.grad[:, :, 15:].any()


def test_a_model_that_does_not_pass_on_the_boundaries_is_refused() -> None:
    with pytest.raises(ModelError, match="boundaries"):
        packed_attention(torch.nn.Identity(), states(4, 1), states(4, 2), states(4, 3), None)


def test_capped_scores_are_refused_at_loading(tmp_path: Any) -> None:
    folder = tiny_models.save(tmp_path, Gemma2Config(**tiny_models.SHAPE, head_dim=8))
    with pytest.raises(ModelError, match="capped scores"):
        load_model(str(folder), device="cpu")


def test_sliding_window_layers_attend_only_to_their_window(tmp_path: Any) -> None:
    """Through a whole model: packed with a window equals the model's own forward with its window mask."""
    sliding = tiny_models.config("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    model = tiny_models.load(tmp_path, sliding)
    assert model.module.config.layer_types == ["full_attention", "sliding_attention"]
    batch = batch_of((12, 7))
    batch = pack_sequences([Sequence(batch.input_ids.numpy()[:3], batch.input_ids.numpy()[3:12])])
    packed = model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs
    model.module.set_attn_implementation("eager")
    logits = model.module(input_ids=batch.input_ids[None], use_cache=False).logits[0, batch.rows]
    own = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(packed, own.detach(), rtol=1e-4, atol=1e-5)
