"""AdamW with moments of 8 bits or in host memory. That plain AdamW is torch's is seen in test_trainer.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from transformers import PreTrainedConfig

from learner.model.trained_model import TrainedModel
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from services.errors import CheckpointError, ConfigError
from tests.support import tiny_models
from tests.support.ranks_together import together

with_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra adam8bit is not installed")

ROUNDS = 12


def shape() -> PreTrainedConfig:
    """Matrices of 4,096 and more, below which moments stay float32."""
    return tiny_models.config(hidden_size=64, intermediate_size=128, num_key_value_heads=4)


def even_shape() -> PreTrainedConfig:
    """Whose matrices two ranks share in whole blocks."""
    return tiny_models.config(hidden_size=64, intermediate_size=128, num_key_value_heads=4, vocab_size=72)


def trainer(folder: Path, optimizer: str, **changes: Any) -> Trainer:
    return Trainer(tiny_models.load(folder, shape()), tiny_models.training(optimizer=optimizer, **changes))


def losses(trainer: Trainer, rounds: int = ROUNDS) -> list[float]:
    """Of rounds that repeat the same rollouts."""
    return [trainer.train_round(tiny_models.samples()).loss for _ in range(rounds)]


def moment_bytes(trainer: Trainer) -> int:
    return sum(t.nbytes for name, t in trainer.state_dict().items() if name.startswith("optimizer."))


@with_bitsandbytes
def test_with_8_bits_the_loss_falls_as_with_32_in_about_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    exact, rounded = trainer(tmp_path, "adamw"), trainer(tmp_path, "adamw_8bit")
    true = losses(exact)
    assert true[-1] < 0.7 * true[0]
    assert losses(rounded) == pytest.approx(true, rel=0.03)
    assert 0.25 < moment_bytes(rounded) / moment_bytes(exact) < 0.3
    assert all(t.dtype == torch.float32 for name, t in rounded.state_dict().items() if name.startswith("model."))


@with_bitsandbytes
@pytest.mark.parametrize("before", [0, 2])
def test_with_8_bits_a_resumed_trainer_continues_bit_for_bit(tmp_path: Path, before: int) -> None:
    """Through a file, as tensors only."""
    first, second = trainer(tmp_path, "adamw_8bit"), trainer(tmp_path, "adamw_8bit")
    losses(first, before)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "state.safetensors")
    losses(second, 1)
    second.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert losses(second, 2) == losses(first, 2)
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@with_bitsandbytes
def test_moments_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not those of this training"):
        trainer(tmp_path, "adamw_8bit").load_state_dict(trainer(tmp_path, "adamw").state_dict())


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="the extra adam8bit is installed")
def test_without_the_library_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        trainer(tmp_path, "adamw_8bit")
    assert refused.value.hint == "pip install 'sept[adam8bit]'"


def test_8_bits_and_offloading_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"adamw_8bit and training\.optimizer_offload = true exclude each other"):
        tiny_models.training(optimizer="adamw_8bit", optimizer_offload=True)


def test_offloaded_moments_change_no_bit_and_are_in_the_state(tmp_path: Path) -> None:
    plain, offloaded = trainer(tmp_path, "adamw"), trainer(tmp_path, "adamw", optimizer_offload=True)
    assert losses(offloaded, 2) == losses(plain, 2)
    ours, theirs = offloaded.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def two_rounds(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    saved = checkpoints.load()
    if saved is not None:
        trainer.load_state_dict(saved.tensors)
    done = [trainer.train_round(tiny_models.samples()).loss for _ in range(2)]
    checkpoints.save(0 if saved is None else saved.weight_version + 1, trainer.state_dict())
    with (folder / "losses.txt").open("a") as file:
        file.writelines(f"{loss}\n" for loss in done)


@with_bitsandbytes
@pytest.mark.parametrize("ranks", [(2, 1), (1, 2)])
def test_8_bit_moments_of_several_ranks_go_on_with_another_number(tmp_path: Path, ranks: tuple[int, int]) -> None:
    tiny_models.save(tmp_path / "model", even_shape())
    for count in ranks:
        config = tiny_models.training(optimizer="adamw_8bit", ranks=count)
        assert together(two_rounds, tmp_path, config) == [0] * count
    found = [float(line) for line in (tmp_path / "losses.txt").read_text().splitlines()]
    assert found == pytest.approx(
        losses(
            Trainer(tiny_models.load(tmp_path / "one", even_shape()), tiny_models.training(optimizer="adamw_8bit")), 4
        ),
        rel=1e-4,
    )


@with_bitsandbytes
def test_rows_that_ranks_cannot_share_in_whole_blocks_are_refused(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "model", shape())  # an embedding of 67 rows
    config = tiny_models.training(optimizer="adamw_8bit", ranks=2)
    assert together(two_rounds, tmp_path, config) == [1, 1]
