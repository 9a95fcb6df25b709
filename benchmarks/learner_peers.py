"""One contender's optimizer steps on given sequences: this project's trainer, TRL's SFTTrainer, a bare loop.

Each starts from the same weights and takes the same steps on the same sequences in the same order: AdamW at a constant
rate without weight decay, the gradient of the mean over the step's response tokens, clipped to norm 1.

Legend of shapes: B sequences of one forward pass, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from learner.config import Recomputation

LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
IGNORED = -100

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]
"""(prompt tokens [P], response tokens [R])."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What each optimizer step took and gave."""

    losses: list[float]
    """Mean NLL per response token, before the step."""
    cpu_s: list[float]
    """Processor seconds of this process; with one thread, the wall time of a quiet machine."""


@dataclass(slots=True)
class _Clock:
    started: float = 0.0

    def start(self) -> None:
        self.started = time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self.started


def run_sept(
    model: Path,
    steps: Sequence[Sequence[Pair]],
    setting: int,
    learning_rate: float = LEARNING_RATE,
    gradient_checkpointing: Recomputation = "off",
) -> Steps:
    """`setting`: tokens of a micro-batch."""
    from learner.config import TrainingConfig
    from learner.model.model_loading import load_model
    from learner.training.batch_sharding import TrainingSample
    from learner.training.trainer import Trainer

    tokenizer = _tokenizer(model)  # takes memory in a run, and TRL has one
    config = TrainingConfig(
        prompts_per_round=len(steps[0]),
        steps_per_round=1,
        learning_rate=learning_rate,
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        micro_batch_tokens=setting,
        gradient_checkpointing=gradient_checkpointing,
        device="cpu",
    )
    loaded = load_model(str(model), device="cpu", gradient_checkpointing=gradient_checkpointing)
    trainer = Trainer(loaded, config)
    done = Steps([], [])
    clock = _Clock()
    for number, pairs in enumerate(steps):
        rollouts = [rollout_of(number, index, pair) for index, pair in enumerate(pairs)]
        clock.start()
        done.losses.append(trainer.train_round(map(TrainingSample, rollouts)).loss)
        done.cpu_s.append(clock.seconds())
    del tokenizer
    return done


def rollout_of(number: int, index: int, pair: Pair) -> Any:
    """A finished rollout of round `number`."""
    from services.contracts import Rollout, VersionSpan

    return Rollout(
        task_id=f"r{number:06d}-{index:05d}",
        sample=0,
        round=number,
        position=index,
        prompt_tokens=pair[0],
        response_tokens=pair[1],
        finish_reason="stop",
        temperature=1.0,
        spans=(VersionSpan(weight_version=number, start=0, end=len(pair[1])),),
        generator_id="benchmark",
        queued_s=0.0,
        generate_s=0.0,
    )


def run_trl(model: Path, steps: Sequence[Sequence[Pair]], setting: int, learning_rate: float = LEARNING_RATE) -> Steps:
    """`setting`: sequences of a forward pass, padded to the longest; 0: the whole step end to end, without padding."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    per_step = len(steps[0])
    rows = [
        {
            "input_ids": np.concatenate(pair).tolist(),
            "completion_mask": [0] * len(pair[0]) + [1] * len(pair[1]),
        }
        for pairs in steps
        for pair in pairs
    ]
    done = Steps([], [])
    clock = _Clock()

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.cpu_s.append(clock.seconds())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=setting or per_step,
            gradient_accumulation_steps=per_step // (setting or per_step),
            padding_free=setting == 0,
            max_length=None,
            max_steps=len(steps),
            train_sampling_strategy="sequential",
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            optim="adamw_torch_fused",
            completion_only_loss=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(model),
            callbacks=[Watch()],
        )
        trainer.train()
        done.losses.extend(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return done


def run_bare(model: Path, steps: Sequence[Sequence[Pair]], setting: int, learning_rate: float = LEARNING_RATE) -> Steps:
    """A loop as a person writes it with transformers. `setting`: sequences of a forward pass, padded to the longest."""
    from transformers import AutoModelForCausalLM

    module: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    done = Steps([], [])
    clock = _Clock()
    for pairs in steps:
        clock.start()
        tokens = sum(len(response) for _, response in pairs)
        total = 0.0
        for start in range(0, len(pairs), setting):
            loss = module(**_padded(pairs[start : start + setting]), num_items_in_batch=tokens, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        done.losses.append(total)
        done.cpu_s.append(clock.seconds())
    return done


def _padded(pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """[B, T] each, padded on the right."""
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    shape = (len(pairs), width)
    ids, labels, mask = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64), np.zeros(shape, np.int64)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = np.concatenate([prompt, response])
        labels[row, len(prompt) : end] = response
        mask[row, :end] = 1
    return {name: torch.from_numpy(a) for name, a in (("input_ids", ids), ("labels", labels), ("attention_mask", mask))}


def _tokenizer(model: Path) -> Any:
    """The model's; TRL pads with its end token where it has no other."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def number_tokenizer(vocabulary: int) -> Any:
    """One token per number, for models of random weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    end, pad = "2", "0"
    words = Tokenizer(WordLevel({str(number): number for number in range(vocabulary)}, unk_token=pad))
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    return fast(tokenizer_object=words, eos_token=end, pad_token=pad)


class Peer(Protocol):
    """Takes the steps, each on its pairs; what `setting` means is the contender's."""

    def __call__(
        self, model: Path, steps: Sequence[Sequence[Pair]], setting: int, learning_rate: float = LEARNING_RATE
    ) -> Steps: ...


PEERS: dict[str, Peer] = {
    "sept": run_sept,
    "trl": run_trl,
    "bare": run_bare,
}
