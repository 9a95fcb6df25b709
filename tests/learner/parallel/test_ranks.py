"""Several ranks train what one rank trains, and what they leave behind goes on with any number of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.algorithms.base import Algorithm, Targets
from learner.algorithms.nll import nll
from learner.config import LoraConfig, TrainingConfig
from learner.model import packing
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import wire_changes, wire_tensors
from learner.parallel.ranks import Order, Ranks, own_rank
from learner.rollouts.collector import Interrupted
from learner.training.batch_sharding import TrainingSample
from learner.training.checkpoint import Checkpoints
from learner.training.follower import follow
from learner.training.trainer import RoundStats, Trainer
from services.contracts import Rollout
from services.errors import ConfigError
from services.tensors import read_safetensors, write_safetensors
from services.weights.delta import apply, decode
from services.weights.delta.plain import encode, layout_of
from tests.support import tiny_models
from tests.support.ranks_together import made, together

STEPS = 5
PROMPTS = 15
TOLERANCE = 2e-5
"""Of weights after five steps of up to 1e-3: the ranks add in another order, and AdamW magnifies what is near zero."""


def config(ranks: int, **changes: Any) -> TrainingConfig:
    """Five steps of three prompts, in micro-batches of about two sequences: some ranks have none at some turn."""
    sizes = {"prompts_per_round": PROMPTS, "steps_per_round": STEPS, "micro_batch_tokens": 24, "max_grad_norm": 0.5}
    return tiny_models.training(ranks=ranks, **(sizes | changes))


def round_of(algorithm: Algorithm) -> list[TrainingSample]:
    rollouts = tiny_models.rollouts(PROMPTS, samples=2)
    signals = [float(r.response_tokens.sum() % 2) - 0.5 if algorithm.signals else 0.0 for r in rollouts]
    return list(map(TrainingSample, rollouts, signals))


def train(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """A round, with what else the loop asks of all ranks; what came of it is written down."""
    batch = packing.pack_sequences([packing.Sequence(np.array([1, 2], np.int32), np.array([3], np.int32))])
    with torch.no_grad():
        before = float(model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).loss)
    stats = trainer.train_round(round_of(trainer.algorithm))
    write_safetensors(folder / f"weights-{model.ranks.size}.safetensors", wire_tensors(model))
    numbers = asdict(stats) | {"log_probs": [of_tokens.tolist() for of_tokens in stats.log_probs]}
    (folder / f"stats-{model.ranks.size}.json").write_text(json.dumps([before, numbers]))


def publish_changes(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """The weights before and after a round, and between them what all ranks together say has changed."""
    before = wire_tensors(model)
    trainer.train_round(round_of(trainer.algorithm))
    (folder / "delta").write_bytes(encode(layout_of(before), wire_changes(model)))
    assert not any(flips.positions.size for flips in wire_changes(model)), "nothing has changed since"
    write_safetensors(folder / "before", before)
    write_safetensors(folder / "after", wire_tensors(model))


def outcome(folder: Path, ranks: int) -> tuple[float, RoundStats, dict[str, np.ndarray[Any, Any]]]:
    before, stats = json.loads((folder / f"stats-{ranks}.json").read_text())
    tensors = read_safetensors(folder / f"weights-{ranks}.safetensors")
    return before, RoundStats(**stats), {name: t.data.view(np.float32) for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("family", "ranks", "changes", "lora"),
    [
        ("qwen2", 2, {}, 0),
        ("llama", 4, {"gradient_checkpointing": "full"}, 0),
        ("qwen2", 2, {"gradient_checkpointing": "light"}, 0),
        ("qwen2", 4, {"algorithm": "grpo", "learning_rate": 1e-4}, 0),
        ("qwen2", 2, {}, 4),
        ("qwen2", 4, {"nodes": 2, "sharding": "node"}, 0),
        ("qwen2", 2, {"algorithm": "self_certainty", "learning_rate": 1e-4}, 0),
    ],
    ids=["two", "four-full", "two-light", "four-grpo", "two-lora", "two-nodes-of-two", "two-scored"],
)
def test_ranks_train_what_one_rank_trains(
    tmp_path: Path, family: tiny_models.Family, ranks: int, changes: dict[str, Any], lora: int
) -> None:
    tiny_models.save(tmp_path / "model", tiny_models.config(family))
    adapters = LoraConfig(rank=lora)
    train(tmp_path, *made(tmp_path, config(1, **(changes | {"nodes": 1})), adapters))
    assert together(train, tmp_path, config(ranks, **changes), adapters) == [0] * ranks
    (before_1, alone, weights_1), (before_n, shared, weights_n) = outcome(tmp_path, 1), outcome(tmp_path, ranks)
    assert before_n == pytest.approx(before_1, rel=1e-6)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-4, abs=1e-6)
    assert shared.grad_norm == pytest.approx(alone.grad_norm, rel=1e-4)
    assert shared.nll == pytest.approx(alone.nll, rel=1e-3)
    for of_one, of_several in zip(alone.log_probs, shared.log_probs, strict=True):
        assert of_several == pytest.approx(of_one, rel=1e-3)
    assert (shared.steps, shared.prompt_tokens, shared.response_tokens) == (
        alone.steps,
        alone.prompt_tokens,
        alone.response_tokens,
    )
    initial = read_safetensors(tmp_path / "model" / "model.safetensors")
    assert weights_n.keys() == weights_1.keys() == initial.keys()
    assert max(np.abs(weights_n[name] - weights_1[name]).max() for name in weights_1) < TOLERANCE
    assert any(not np.array_equal(weights_1[name], initial[name].data.view(np.float32)) for name in initial)


@pytest.mark.parametrize(("ranks", "changes"), [(3, {}), (4, {"nodes": 2, "sharding": "node"})], ids=["3", "2x2"])
def test_ranks_publish_only_what_changed_and_it_makes_the_same_bits(
    tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    """Three ranks: some tensors do not split evenly, and some ranks have no rows of the smallest."""
    tiny_models.save(tmp_path / "model", dtype=torch.bfloat16)
    assert together(publish_changes, tmp_path, config(ranks, learning_rate=1e-5, **changes)) == [0] * ranks
    before, after = (read_safetensors(tmp_path / name) for name in ("before", "after"))
    patches = list(decode(before, (tmp_path / "delta").read_bytes()))
    elements = sum(tensor.nbytes // 2 for tensor in before.values())
    assert 0 < sum(patch.indices.size for patch in patches) < 0.9 * elements
    copies = {name: tensor.data.copy() for name, tensor in before.items()}
    for patch in patches:
        apply(patch, copies[patch.name])
    assert all(np.array_equal(copies[name], tensor.data) for name, tensor in after.items())


def save_then_die(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """A round and its checkpoint, another round, and death when everything but the mark of the second is written."""
    trainer.train_round(tiny_models.samples(PROMPTS, seed=1))
    checkpoints.save(1, trainer.state_dict())
    trainer.train_round(tiny_models.samples(PROMPTS, seed=2))
    checkpoints.save(2, trainer.state_dict(), before_commit=lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_learner_killed_in_mid_checkpoint_goes_on_with_fewer_ranks(tmp_path: Path, ranks: int) -> None:
    tiny_models.save(tmp_path / "model")
    codes = together(save_then_die, tmp_path, config(2))
    assert codes[0] == -signal.SIGKILL
    assert codes[1] == 1, "the other rank ends, too"
    (half,) = (tmp_path / "checkpoints").glob(".partial-*")
    assert len(list(half.glob("state-*.safetensors"))) == 2

    _, peaceful, _ = made(tmp_path, config(1))
    losses = [peaceful.train_round(tiny_models.samples(PROMPTS, seed=seed)).loss for seed in (1, 2, 3)]
    if ranks == 2:
        assert together(go_on, tmp_path, config(2)) == [0, 0]
    else:
        go_on(tmp_path, *made(tmp_path, config(1)))
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses[1:], rel=1e-4)


def go_on(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    resumed = checkpoints.load()
    assert resumed is not None
    assert resumed.weight_version == 1
    trainer.load_state_dict(resumed.tensors)
    assert trainer.steps == STEPS
    losses = [trainer.train_round(tiny_models.samples(PROMPTS, seed=seed)).loss for seed in (2, 3)]
    (folder / "losses.json").write_text(json.dumps(losses))


def apart(folder: Path, rank: int) -> Path:
    """The checkpoints of the rank's host, when each host has a disk of its own."""
    (own := folder / f"host-{rank // 2}").mkdir(exist_ok=True)
    return own


def save_apart(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """On every rank: two rounds, each with a checkpoint that only host 0 keeps; then back to the first, and on."""
    ranks = model.ranks
    own = Checkpoints(apart(folder, ranks.rank), "run", keep=2, ranks=ranks)
    if not ranks.is_leader:
        follow(trainer, own)
        return
    for version in (1, 2):
        trainer.train_round(tiny_models.samples(PROMPTS, seed=version))
        own.save(version, trainer.state_dict())
    trainer.load_state_dict(own.go_back(1).tensors)
    stats = trainer.train_round(tiny_models.samples(PROMPTS, seed=2))
    (folder / "losses.json").write_text(json.dumps([stats.loss]))
    write_safetensors(folder / "weights-4.safetensors", wire_tensors(model))
    ranks.send_order(Order.STOP)


def go_on_apart(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """On every rank: a later start, from what host 0 has."""
    ranks = model.ranks
    own = Checkpoints(apart(folder, ranks.rank), "run", keep=2, ranks=ranks)
    if not ranks.is_leader:
        follow(trainer, own)
        return
    go_on(folder, model, trainer, own)
    ranks.send_order(Order.STOP)


@pytest.mark.parametrize("sharding", ["all", "node"])
def test_hosts_without_a_shared_folder_keep_and_resume_the_same_bits(tmp_path: Path, sharding: str) -> None:
    """As with one rank; and any number of ranks goes on from what the others' rows became."""
    tiny_models.save(tmp_path / "model")
    two_hosts = config(4, nodes=2, sharding=sharding)
    assert together(save_apart, tmp_path, two_hosts, on_every_rank=True) == [0] * 4
    assert [path.name for path in (tmp_path / "host-0").iterdir()] == ["v000001"]
    assert list((tmp_path / "host-1").iterdir()) == []
    assert together(go_on_apart, tmp_path, two_hosts, on_every_rank=True) == [0] * 4
    theirs = json.loads((tmp_path / "losses.json").read_text())

    (tmp_path / "host-0").rename(tmp_path / "checkpoints")
    go_on(tmp_path, *made(tmp_path, config(1)))
    alone = json.loads((tmp_path / "losses.json").read_text())
    assert theirs == pytest.approx(alone, rel=1e-4)


def interrupted(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Rank 0's wait ends in mid-round; afterwards all ranks are at the same place again."""

    def arriving() -> Iterator[Rollout]:
        yield from tiny_models.rollouts(4)
        raise Interrupted

    with pytest.raises(Interrupted):
        trainer.train_round(map(TrainingSample, arriving()))
    train(folder, model, trainer, checkpoints)


def test_a_round_that_is_interrupted_leaves_no_rank_behind(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "model")
    assert together(interrupted, tmp_path, config(2)) == [0, 0]
    interrupted(tmp_path, *made(tmp_path, config(1)))
    assert outcome(tmp_path, 2)[1].loss == pytest.approx(outcome(tmp_path, 1)[1].loss, rel=1e-4)


def test_one_rank_is_an_ordinary_process() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.is_leader, ranks.holds_first_replica) == (0, 1, True, True)
    assert list(ranks.broadcast_stream(iter([np.array([1])]))) == [np.array([1])]
    assert ranks.all_reduce_sum(torch.ones(2)).tolist() == [1.0, 1.0]
    assert ranks.own_device(torch.device("cpu")) == torch.device("cpu")


def test_ranks_that_nobody_started_are_a_mistake_of_the_start() -> None:
    with pytest.raises(ConfigError, match="started as 1 processes"):
        own_rank(2)
