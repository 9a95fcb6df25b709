"""Every model is trained as its own forward computes it, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Starcoder2Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.model_loading import load_model
from learner.model.packing import Sequence, pack_sequences
from learner.model.self_check import check_model
from learner.model.trained_model import TrainedModel
from services.errors import ModelError
from tests.support import tiny_models
from tests.support.plain_model import plain_model

SHAPE = tiny_models.SHAPE
OPT = {name: value for name, value in SHAPE.items() if "key_value" not in name and name != "intermediate_size"}
LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
}
RANDOM = {
    "layers that drop by themselves": OPTConfig(**OPT, ffn_dim=48, word_embed_proj_dim=32, init_std=0.3, dropout=0.5),
    "a rate of its own name": Starcoder2Config(**SHAPE, residual_dropout=0.5, embedding_dropout=0.5),
    "a router with jitter": MixtralConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.5, sliding_window=None
    ),
}
ONE_AT_A_TIME = {
    "state from token to token": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
    "frequencies of the longest": Phi3Config(
        **SHAPE | {"pad_token_id": 0}, original_max_position_embeddings=16, rope_parameters=LONG_ROPE
    ),
}


def log_probs(model: TrainedModel, sequences: list[Sequence]) -> torch.Tensor:
    batch = pack_sequences(sequences)
    return model.token_losses(batch, nll, Targets(batch.targets), 1.0).log_probs


def sequences_of(*lengths: int) -> list[Sequence]:
    generator = np.random.default_rng(0)
    return [Sequence(tiny_models.tokens(generator, 3), tiny_models.tokens(generator, length - 3)) for length in lengths]


def own_gradients(folder: Path, sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """Of the summed NLL of the responses, by transformers' own model, one sequence after the other."""
    model: Any = plain_model(folder)
    for sequence in sequences:
        tokens = torch.from_numpy(np.concatenate([sequence.prompt_tokens, sequence.response_tokens]).astype(np.int64))
        logits = model(input_ids=tokens[None, :-1], use_cache=False).logits[0].log_softmax(-1)
        (-logits.gather(-1, tokens[1:, None])[sequence.prompt_tokens.size - 1 :]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["off", "full"])
@pytest.mark.parametrize("config", [*RANDOM.values(), *ONE_AT_A_TIME.values()], ids=[*RANDOM, *ONE_AT_A_TIME])
def test_the_gradient_in_training_is_that_of_the_models_own_forward_without_randomness(
    tmp_path: Path, config: PreTrainedConfig, how: Any
) -> None:
    folder = tiny_models.save(tmp_path, config)
    model, sequences = load_model(str(folder), device="cpu", gradient_checkpointing=how), sequences_of(8, 40, 9)
    assert model.module.training
    batch = pack_sequences(sequences)
    model.token_losses(batch, nll, Targets(batch.targets), 1.0).loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    for name, own in own_gradients(folder, sequences).items():
        torch.testing.assert_close(gradients[name], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", ONE_AT_A_TIME.values(), ids=[*ONE_AT_A_TIME])
def test_what_cannot_be_packed_is_computed_one_sequence_at_a_time(tmp_path: Path, config: PreTrainedConfig) -> None:
    model = tiny_models.load(tmp_path, config)
    assert not model.loss_module.packs
    sequences = sequences_of(8, 40, 9)
    alone = torch.cat([log_probs(model, [sequence]) for sequence in sequences])
    torch.testing.assert_close(log_probs(model, sequences), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", ONE_AT_A_TIME.values(), ids=[*ONE_AT_A_TIME])
def test_several_ranks_need_a_model_that_packs(tmp_path: Path, config: PreTrainedConfig) -> None:
    model = tiny_models.load(tmp_path, config)
    two: Any = SimpleNamespace(size=2)
    model.loss_module.packs = True
    with pytest.raises(ModelError, match=r"only one at a time.*training\.ranks is 2"):
        check_model(replace(model, ranks=two))


def test_a_run_that_stays_below_the_length_of_change_packs(tmp_path: Path) -> None:
    model = load_model(str(tiny_models.save(tmp_path, ONE_AT_A_TIME["frequencies of the longest"])), longest=16)
    assert model.loss_module.packs
    assert model.checked_lengths == ()


def test_a_model_that_remembers_earlier_sequences_is_refused(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    folder = tiny_models.save(tmp_path, LlamaConfig(**SHAPE | {"max_position_embeddings": 16}, rope_parameters=dynamic))
    with pytest.raises(ModelError, match="also for one sequence at a time") as caught:
        load_model(str(folder), device="cpu")
    assert "24 tokens or more" in str(caught.value.hint)


def test_windows_are_looked_at_where_they_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed attention forgets the window; sequences that fit into it cannot show that."""
    from learner.model import attention

    folder = str(tiny_models.save(tmp_path, MistralConfig(**SHAPE, sliding_window=24)))
    monkeypatch.setattr(attention, "_window_mask", lambda *_: None)
    assert load_model(folder, device="cpu", longest=24).checked_lengths == ()
    with pytest.raises(ModelError, match="differ from its own"):
        load_model(folder, device="cpu", longest=64)


def test_randomness_that_no_setting_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact: Any = LlamaMLP.forward

    def noisy(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(exact(self, hidden), 0.1, training=self.training)

    folder = tiny_models.save(tmp_path, tiny_models.config("llama"))
    monkeypatch.setattr(LlamaMLP, "forward", noisy)
    with pytest.raises(ModelError, match="something else each time"):
        load_model(str(folder), device="cpu")


def test_a_model_whose_code_fails_is_refused_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    folder = tiny_models.save(tmp_path, tiny_models.config("llama"))
    monkeypatch.setattr(LlamaMLP, "forward", failing)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot compute.*RuntimeError: the size of tensor a"):
        load_model(str(folder), device="cpu")


def test_a_model_whose_logits_are_scaled_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, GraniteConfig(**(SHAPE | {"logits_scaling": 2.0})))
    with pytest.raises(ModelError, match="differ from its own"):
        load_model(str(folder), device="cpu")


def test_a_rank_that_is_lost_meanwhile_is_no_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the model ends the run for good; after the loss of a rank it starts again."""
    model = load_model(str(tiny_models.save(tmp_path)), device="cpu")

    def lost(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer")

    monkeypatch.setattr(model.loss_module, "own_logits", lost)
    with pytest.raises(RuntimeError, match="Connection reset by peer"):
        check_model(model)
