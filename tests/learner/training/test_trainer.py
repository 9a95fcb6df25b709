"""A round of training against plain loops over transformers' own loss, and what a resumed trainer does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from learner.algorithms.base import Targets
from learner.algorithms.grpo import advantages
from learner.algorithms.nll import nll
from learner.config import TrainingConfig
from learner.model.model_loading import load_model
from learner.model.packing import Sequence as Packed
from learner.model.packing import pack_sequences
from learner.model.trained_model import TrainedModel
from learner.training.batch_sharding import TrainingSample
from learner.training.trainer import Trainer
from services.contracts import Rollout
from services.errors import CheckpointError, ContractError, ModelError
from tests.support import tiny_models
from tests.support.plain_model import own_logits, plain_model

FAMILIES = ["qwen2", "llama"]
Weights = dict[str, torch.Tensor]

STEP_TOLERANCE = 1e-5
"""One percent of the longest step at a rate of 1e-3: AdamW blows rounding up where a gradient is near zero."""


def weights(module: torch.nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def largest_difference(ours: Weights, theirs: Weights) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def own_loss(model: Any, rollouts: Sequence[Rollout]) -> torch.Tensor:
    """Mean NLL per response token with transformers' labels and loss, one unpadded sequence at a time."""
    count = sum(rollout.response_tokens.size for rollout in rollouts)
    total = torch.zeros(())
    for rollout in rollouts:
        ids = torch.tensor(np.concatenate([rollout.prompt_tokens, rollout.response_tokens]), dtype=torch.int64)[None]
        labels = ids.clone()
        labels[:, : rollout.prompt_tokens.size] = -100
        total = total + model(input_ids=ids, labels=labels, num_items_in_batch=count, use_cache=False).loss
    return total


def plain_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float) -> float:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return float(norm)


def trained(
    folder: Path, config: TrainingConfig, rollouts: Sequence[Rollout], signals: Sequence[float] | None = None
) -> tuple[Trainer, Weights, Any]:
    model = load_model(str(folder), device="cpu", gradient_checkpointing=tiny_models.recomputation_of(config))
    trainer = Trainer(model, config)
    stats = trainer.train_round(map(TrainingSample, rollouts, signals or [0.0] * len(rollouts)))
    return trainer, weights(model.module), stats


# Loss and gradient: packed = unpacked = transformers.


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_unpacked_equals_transformers(tmp_path: Path, family: tiny_models.Family) -> None:
    folder = tiny_models.save(tmp_path, tiny_models.config(family))
    rollouts = tiny_models.rollouts(6)
    sequences = [Packed(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts]
    count = sum(rollout.response_tokens.size for rollout in rollouts)

    def run(groups: list[list[Packed]]) -> tuple[float, Weights]:
        model = load_model(str(folder), device="cpu")
        total = 0.0
        for group in groups:
            batch = pack_sequences(group)
            loss = model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).loss / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total, gradients(model.module)

    def gradients(module: torch.nn.Module) -> Weights:
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    packed_loss, packed = run([sequences])
    unpacked_loss, unpacked = run([[sequence] for sequence in sequences])
    plain = plain_model(folder)
    loss = own_loss(plain, rollouts)
    loss.backward()  # type: ignore[no-untyped-call]
    own = gradients(plain)
    assert packed_loss == pytest.approx(loss.item(), rel=1e-6)
    assert unpacked_loss == pytest.approx(loss.item(), rel=1e-6)
    scale = max(float(grad.abs().max()) for grad in own.values())
    assert largest_difference(packed, own) < 2e-6 * scale
    assert largest_difference(unpacked, own) < 2e-6 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_equals_a_plain_loop_of_adamw_on_contiguous_mini_batches(
    tmp_path: Path, family: tiny_models.Family
) -> None:
    folder = tiny_models.save(tmp_path, tiny_models.config(family))
    rollouts = tiny_models.rollouts(8, samples=2)
    config = tiny_models.training(warmup_steps=4, weight_decay=0.1, max_grad_norm=0.5, micro_batch_tokens=20)
    trainer, ours, stats = trained(folder, config, rollouts)

    plain = plain_model(folder)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    losses, norms = [], []
    for step, mini_batch in enumerate([rollouts[:8], rollouts[8:]]):
        optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1) / 4
        loss = own_loss(plain, mini_batch)
        losses.append(loss.item())
        norms.append(plain_step(plain, optimizer, loss, 0.5))
    assert stats.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert stats.grad_norm == pytest.approx(np.mean(norms), rel=1e-4)
    assert stats.learning_rate == pytest.approx(5e-4)
    assert (stats.steps, stats.skipped_steps, trainer.steps) == (2, 0, 2)
    assert stats.response_tokens == sum(rollout.response_tokens.size for rollout in rollouts)
    assert stats.prompt_tokens == sum(rollout.prompt_tokens.size for rollout in rollouts)
    assert largest_difference(ours, weights(plain)) < STEP_TOLERANCE


@pytest.mark.parametrize("budget", [1, 9, 20])
def test_a_step_does_not_depend_on_how_its_sequences_are_packed(tmp_path: Path, budget: int) -> None:
    folder = tiny_models.save(tmp_path)
    _, whole, stats = trained(folder, tiny_models.training(micro_batch_tokens=10_000), tiny_models.rollouts())
    _, parts, small = trained(folder, tiny_models.training(micro_batch_tokens=budget), tiny_models.rollouts())
    assert small.micro_batches > stats.micro_batches == 2
    assert small.loss == pytest.approx(stats.loss, rel=1e-5)
    assert small.grad_norm == pytest.approx(stats.grad_norm, rel=1e-5)
    assert small.nll == pytest.approx(stats.nll, rel=1e-4)
    assert largest_difference(parts, whole) < STEP_TOLERANCE


def test_computing_in_bf16_leaves_weights_and_gradients_in_float32(tmp_path: Path, one_rank_group: None) -> None:
    model = tiny_models.load(tmp_path, compute_dtype=torch.bfloat16)
    stats = Trainer(model, tiny_models.training()).train_round(tiny_models.samples())
    _, _, exact = trained(tmp_path, tiny_models.training(), tiny_models.rollouts())
    assert stats.loss == pytest.approx(exact.loss, rel=0.03)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}


# Objectives, each against its formula on whole logits.


def test_training_temperature_divides_the_logits(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    rollouts = tiny_models.rollouts(4)
    _, _, stats = trained(folder, tiny_models.training(tau_t=0.6, steps_per_round=1), rollouts)
    plain = plain_model(folder)
    log_probs = [
        (own_logits(plain, r) / 0.6).log_softmax(-1)[torch.arange(r.response_tokens.size), r.response_tokens.tolist()]
        for r in rollouts
    ]
    assert stats.loss == pytest.approx(-torch.cat(log_probs).mean().item(), rel=1e-5)
    assert stats.nll == pytest.approx([-part.mean().item() for part in log_probs], rel=1e-5)
    for recorded, exact in zip(stats.log_probs, log_probs, strict=True):
        np.testing.assert_allclose(recorded, exact.numpy(force=True), rtol=1e-4, atol=1e-5)


def test_a_round_may_be_trained_at_the_temperature_that_sampled_it(tmp_path: Path) -> None:
    """Coupled: tau_t follows an annealed tau_s."""
    folder = tiny_models.save(tmp_path)
    rollouts = [rollout.model_copy(update={"temperature": 0.7}) for rollout in tiny_models.rollouts(4)]
    _, ours, stats = trained(folder, tiny_models.training(tau_t="tau_s", steps_per_round=1), rollouts)
    _, fixed, expected = trained(folder, tiny_models.training(tau_t=0.7, steps_per_round=1), rollouts)
    _, _, other = trained(folder, tiny_models.training(tau_t=1.0, steps_per_round=1), rollouts)
    assert stats.loss == expected.loss != other.loss
    assert largest_difference(ours, fixed) == 0.0


def test_entropy_step_equals_its_formula(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    rollouts = tiny_models.rollouts(8)
    _, ours, stats = trained(folder, tiny_models.training(algorithm="entropy", steps_per_round=1), rollouts)
    plain = plain_model(folder)
    p = torch.cat([own_logits(plain, rollout) for rollout in rollouts]).softmax(-1)
    loss = -(p * p.log()).sum(-1).mean()
    plain_step(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.01), loss, 1.0)
    assert stats.loss == pytest.approx(loss.item(), rel=1e-5)
    assert largest_difference(ours, weights(plain)) < STEP_TOLERANCE


def test_grpo_steps_equal_their_formula(tmp_path: Path) -> None:
    """Two steps: the second one's ratio is against the weights of the round's start, and clipped."""
    folder = tiny_models.save(tmp_path)
    rollouts = tiny_models.rollouts(8, samples=4)
    rewards = [float(r.response_tokens.sum() % 2) for r in rollouts]
    config = tiny_models.training(algorithm="grpo", learning_rate=1e-2, micro_batch_tokens=30)
    signals = [one for start in range(0, 32, 4) for one in advantages(rewards[start : start + 4])]
    _, ours, stats = trained(folder, config, rollouts, signals)

    plain = plain_model(folder)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)

    def log_probs(rollout: Rollout) -> torch.Tensor:
        tokens = torch.tensor(rollout.response_tokens, dtype=torch.int64)
        return own_logits(plain, rollout).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]

    old = [log_probs(rollout).detach() for rollout in rollouts]
    losses = []
    for step in (range(16), range(16, 32)):
        ratios = [(log_probs(rollouts[i]) - old[i]).exp() for i in step]
        surrogate = [
            torch.min(r * signals[i], r.clip(0.8, 1.2) * signals[i]) for r, i in zip(ratios, step, strict=True)
        ]
        loss = -torch.cat(surrogate).mean()
        losses.append(loss.item())
        plain_step(plain, optimizer, loss, 1.0)
    assert any(((ratio < 0.8) | (ratio > 1.2)).any() for ratio in ratios)
    assert stats.loss == pytest.approx(np.mean(losses), rel=1e-4, abs=1e-6)
    assert largest_difference(ours, weights(plain)) < 20 * STEP_TOLERANCE


def test_grpo_with_equal_rewards_moves_nothing_but_weight_decay(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    config = tiny_models.training(algorithm="grpo", weight_decay=0.0)
    _, ours, stats = trained(folder, config, tiny_models.rollouts(8, samples=2), [0.0] * 16)
    assert stats.grad_norm == 0.0
    assert largest_difference(ours, weights(plain_model(folder))) == 0.0


# Rounds.


def test_a_full_micro_batch_is_trained_before_later_rollouts_are_asked_for(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path)
    has_gradient = []

    def arriving() -> Iterator[Rollout]:
        for index in range(4):
            has_gradient.append(any(p.grad is not None and bool(p.grad.any()) for p in model.module.parameters()))
            yield tiny_models.rollout(index, [1, 2, 3], [4, 5])

    Trainer(model, tiny_models.training(steps_per_round=1, micro_batch_tokens=8)).train_round(
        map(TrainingSample, arriving())
    )
    assert has_gradient == [False, False, False, True]


def test_training_learns_what_it_is_shown(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path)
    trainer = Trainer(model, tiny_models.training(learning_rate=1e-2))
    losses = [trainer.train_round(tiny_models.samples()).loss for _ in range(20)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "rollouts",
    [
        [tiny_models.rollout(1, [1], [2]), tiny_models.rollout(0, [1], [2])],
        [tiny_models.rollout(0, [1], [2]), tiny_models.rollout(0, [1], [2])],
        [tiny_models.rollout(0, [1], [2], sample=1), tiny_models.rollout(0, [1], [2], sample=0)],
        [tiny_models.rollout(0, [1], [2]), tiny_models.rollout(1, [1], [2]).model_copy(update={"round": 1})],
    ],
    ids=["index", "twin", "sample", "round"],
)
def test_rollouts_out_of_order_are_refused(tmp_path: Path, rollouts: list[Rollout]) -> None:
    with pytest.raises(ContractError, match="by position and sample"):
        Trainer(tiny_models.load(tmp_path), tiny_models.training()).train_round(map(TrainingSample, rollouts))


def test_a_round_without_rollouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="at least one rollout"):
        Trainer(tiny_models.load(tmp_path), tiny_models.training()).train_round([])


def test_a_step_whose_gradient_is_not_finite_is_left_out(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path, tiny_models.config("llama"))
    trainer = Trainer(model, tiny_models.training(prompts_per_round=2))
    with torch.no_grad():
        model.module.get_parameter("model.embed_tokens.weight")[3] = torch.inf
    poisoned, sound = tiny_models.rollout(0, [3], [4]), tiny_models.rollout(1, [5], [6])
    before = weights(model.module)
    stats = trainer.train_round(map(TrainingSample, [poisoned, sound]))
    assert (stats.steps, stats.skipped_steps, trainer.steps) == (2, 1, 2)
    assert np.isfinite([stats.loss, stats.grad_norm]).all()
    after = weights(model.module)
    assert after["model.norm.weight"].isfinite().all()
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_single_gradient_that_is_not_finite_spoils_no_weight(tmp_path: Path, value: float) -> None:
    model = tiny_models.load(tmp_path)
    seen: list[Weights] = []

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        """The first step's gradient alone, in one place."""
        seen.append(weights(model.module))
        if len(seen) > 1:
            return grad
        spoilt = grad.clone()
        spoilt[0] = value
        return spoilt

    model.module.get_parameter("model.norm.weight").register_hook(spoil)  # type: ignore[no-untyped-call]
    stats = Trainer(model, tiny_models.training(weight_decay=0.0)).train_round(tiny_models.samples())
    assert (stats.steps, stats.skipped_steps) == (2, 1)
    assert largest_difference(*seen) == 0.0, "the second step began where the first one did"
    after = weights(model.module)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert largest_difference(after, seen[0]) > 0.0


def test_a_model_that_has_diverged_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path)
    with torch.no_grad():
        model.module.get_parameter("model.norm.weight")[0] = torch.inf
    before = weights(model.module)
    with pytest.raises(ModelError, match="all 2 steps"):
        Trainer(model, tiny_models.training()).train_round(tiny_models.samples())
    assert all(torch.equal(after, before[name]) for name, after in weights(model.module).items())


# Repeating and resuming.


def rounds(seeds: Sequence[int], trainer: Trainer) -> list[Any]:
    return [replace(trainer.train_round(tiny_models.samples(seed=seed)), seconds=0.0) for seed in seeds]


def test_same_rollouts_give_the_same_bits(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    runs: list[TrainedModel] = [load_model(str(folder), device="cpu") for _ in range(2)]
    stats = [rounds([0, 1], Trainer(model, tiny_models.training(micro_batch_tokens=30))) for model in runs]
    assert stats[0] == stats[1]
    assert largest_difference(*(weights(model.module) for model in runs)) == 0.0


@pytest.mark.parametrize("before", [[], [0], [0, 1]])
def test_a_resumed_trainer_continues_bit_for_bit(tmp_path: Path, before: list[int]) -> None:
    """Through a file, as tensors only; with warm-up, so that the step count matters too."""
    folder = tiny_models.save(tmp_path / "model")
    config = tiny_models.training(warmup_steps=10)
    model, resumed = (load_model(str(folder), device="cpu") for _ in range(2))
    trainer, successor = Trainer(model, config), Trainer(resumed, config)
    rounds(before, trainer)
    safetensors.torch.save_file(trainer.state_dict(), tmp_path / "state.safetensors")
    rounds([7], successor)
    successor.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert successor.steps == trainer.steps
    assert rounds([2, 3], successor) == rounds([2, 3], trainer)
    assert largest_difference(weights(resumed.module), weights(model.module)) == 0.0


def test_loading_leaves_the_given_state_alone(tmp_path: Path) -> None:
    trainer = Trainer(tiny_models.load(tmp_path), tiny_models.training())
    rounds([0], trainer)
    state = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    trainer.load_state_dict(state)
    rounds([1], trainer)
    assert all(torch.equal(state[name], kept[name]) for name in chain(state, kept))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    small = Trainer(tiny_models.load(tmp_path / "small"), tiny_models.training())
    large = Trainer(tiny_models.load(tmp_path / "large", tiny_models.config(hidden_size=64)), tiny_models.training())
    with pytest.raises(CheckpointError, match="not those of this training"):
        small.load_state_dict(large.state_dict())
