"""A learner on a GPU: against the CPU's float32, itself with other settings, and several ranks over NCCL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.config import LoraConfig, TrainingConfig
from learner.model.canary import compute_canaries
from learner.model.model_loading import load_model
from learner.model.trained_model import TrainedModel
from learner.training.batch_sharding import TrainingSample
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import RoundStats, Trainer
from tests.support import tiny_models
from tests.support.ranks_together import together

pytestmark = pytest.mark.gpu

SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 512}
ADAPTERS = LoraConfig(rank=4)


def config(**changes: Any) -> TrainingConfig:
    defaults = {"learning_rate": 1e-4, "device": "cuda", "gradient_checkpointing": "off"}
    return tiny_models.training(**(defaults | changes))


def rounds(
    folder: Path, training: TrainingConfig, adapters: LoraConfig | None = None
) -> tuple[Trainer, list[RoundStats]]:
    assert training.gradient_checkpointing != "auto"
    model = load_model(
        str(folder),
        device=training.device,
        gradient_checkpointing=training.gradient_checkpointing,
        adapters=adapters,
    )
    trainer = Trainer(model, training)
    samples = [TrainingSample(rollout, 1.0) for rollout in tiny_models.rollouts()]
    return trainer, [trainer.train_round(samples) for _ in range(4)]


def folder_of_model(folder: Path, **changes: Any) -> Path:
    return tiny_models.save(folder, tiny_models.config(**(SHAPE | changes)), dtype=torch.bfloat16)


@pytest.mark.parametrize("algorithm", ["nll", "entropy", "grpo"])
@pytest.mark.parametrize("adapters", [None, ADAPTERS])
def test_a_gpu_trains_what_a_cpu_trains(tmp_path: Path, algorithm: str, adapters: LoraConfig | None) -> None:
    folder_of_model(tmp_path)
    _, ours = rounds(tmp_path, config(algorithm=algorithm), adapters)
    _, exact = rounds(tmp_path, config(algorithm=algorithm, device="cpu"), adapters)
    for own, true in zip(ours, exact, strict=True):
        assert own.loss == pytest.approx(true.loss, rel=0.03, abs=0.02)
        assert own.grad_norm == pytest.approx(true.grad_norm, rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [{"gradient_checkpointing": "light"}, {"gradient_checkpointing": "full"}, {"optimizer_offload": True}],
    ids=str,
)
def test_what_saves_memory_changes_no_number(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder_of_model(tmp_path)
    plain, losses = rounds(tmp_path, config())
    saving, same = rounds(tmp_path, config(**changes))
    assert [stats.loss for stats in same] == pytest.approx([stats.loss for stats in losses], rel=1e-3)
    if "optimizer_offload" in changes:
        moments = [tensor for name, tensor in saving.state_dict().items() if "exp_avg" in name]
        assert {tensor.device.type for tensor in moments} == {"cpu"}
    assert plain.steps == saving.steps


def test_a_windowed_model_with_grouped_heads_passes_the_check_of_its_kernels(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0, "max_position_embeddings": 512}
    model = load_model(str(folder_of_model(tmp_path, **changes)), device="cuda")
    assert model.compute_dtype == torch.bfloat16


def test_canaries_are_those_of_float32(tmp_path: Path) -> None:
    folder_of_model(tmp_path)
    ours, exact = (compute_canaries(load_model(str(tmp_path), device=name), 4) for name in ("cuda", "cpu"))
    for own, true in zip(ours, exact, strict=True):
        assert own.log_probs == pytest.approx(true.log_probs, abs=1e-3)


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    folder_of_model(tmp_path)
    trainer, _ = rounds(tmp_path, config())
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run", keep=1, async_write=True)
    checkpoints.save(1, trainer.state_dict())
    again = Trainer(load_model(str(tmp_path), device="cuda"), config())
    saved = checkpoints.load()
    assert saved is not None
    again.load_state_dict(saved.tensors)
    ours, theirs = again.state_dict(), trainer.state_dict()
    assert all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in theirs if name == "steps")
    assert again.train_round(tiny_models.samples()).loss == pytest.approx(
        trainer.train_round(tiny_models.samples()).loss, rel=1e-3
    )


def train(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    losses = [trainer.train_round(tiny_models.samples()).loss for _ in range(4)]
    (folder / "losses.json").write_text(json.dumps(losses))


@pytest.mark.parametrize("ranks", [2])
def test_ranks_over_nccl_train_what_one_gpu_trains(tmp_path: Path, ranks: int) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"{ranks} GPUs are needed, torch finds {torch.cuda.device_count()}")
    folder_of_model(tmp_path / "model")
    _, alone = rounds(tmp_path / "model", config())
    assert together(train, tmp_path, config(ranks=ranks)) == [0] * ranks
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses == pytest.approx([stats.loss for stats in alone], rel=1e-2)
