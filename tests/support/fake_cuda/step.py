"""One optimizer step of the learner on fake CUDA devices, and what it needed. Import it after `device.install`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoConfig, AutoModelForCausalLM

from learner.config import LoraConfig, TrainingConfig
from learner.model import lora, model_loading
from learner.model.attention import PACKED_ATTENTION
from learner.model.flops import cost_of
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Payload, Ranks
from learner.training.batch_sharding import TrainingSample
from learner.training.trainer import Trainer
from services.contracts import Rollout, VersionSpan
from tests.support.fake_cuda.scenario import Measurement, Scenario
from tests.support.fake_cuda.tracker import Tracker

CUDA = torch.device("cuda", 0)


class LoneRank(Ranks):
    """Rank 0 of several, whose peers agree with whatever it says."""

    def broadcast(self, payload: Payload | None) -> Payload:
        assert payload is not None
        return payload

    def all_reduce_sum(self, totals: torch.Tensor) -> torch.Tensor:
        return totals

    def device_mesh(self, device: torch.device) -> DeviceMesh:
        with _disable_current_modes():  # the mesh computes with the ranks' numbers
            return super().device_mesh(device)


def measure(scenario: Scenario) -> Measurement:
    """Load the scenario's model without values, take one optimizer step and say what it needed."""
    tracker = Tracker()
    config = training_config(scenario)
    with process_group(scenario.ranks), FakeTensorMode(allow_non_fake_inputs=True):
        model = load(scenario)
        with tracker, tracker.following_fsdp():
            for tensor in [*model.module.parameters(), *model.module.buffers()]:
                tracker.watch(tensor)
            weights = tracker.live
            trainer = Trainer(model, config)
            state = tracker.live
            marks = _marks_around_update(trainer, tracker)
            tracker.start_peak()
            stats = trainer.train_round(_samples(scenario))
            update_peak = tracker.peak
    shared = {name: n for name, n in tracker.moved.items() if "fsdp" not in name and "adam" not in name}
    return Measurement(
        parameters=sum(p.numel() for p in model.module.parameters()),
        weights_bytes=weights,
        state_bytes=state,
        training_peak_bytes=marks["peak"],
        update_peak_bytes=update_peak,
        gradients_bytes=marks["live"] - state,
        peak_operator=marks["operator"],
        micro_batches=-(-stats.micro_batches // scenario.ranks),
        attention_calls=tracker.attention_calls,
        host_to_device=tracker.host_to_device,
        device_to_host=tracker.device_to_host,
        items=tracker.items,
        launches=tracker.launches,
        flops=tracker.flops,
        moved_bytes=sum(shared.values()),
        moved=dict(tracker.moved.most_common(40)),
    )


@contextmanager
def process_group(ranks: int) -> Iterator[None]:
    """torch's fake process group, in which every collective operation is done at once."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def training_config(scenario: Scenario) -> TrainingConfig:
    """A round of one step whose micro-batches are full on every rank."""
    return TrainingConfig(
        algorithm=scenario.algorithm,
        prompts_per_round=scenario.sequences,
        steps_per_round=1,
        micro_batch_tokens=scenario.tokens,
        gradient_checkpointing=scenario.gradient_checkpointing,
        device="cuda",
        ranks=scenario.ranks,
        **scenario.training,
    )


def load(scenario: Scenario) -> TrainedModel:
    """As `read_model` does, with tensors that have no values. Call it within a FakeTensorMode."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": PACKED_ATTENTION}
    with _disable_current_modes():
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**scenario.model), **options)  # type: ignore[no-untyped-call]
        cost = cost_of(module)
        model_loading._adapt(module, CUDA, scenario.gradient_checkpointing, LoraConfig(rank=scenario.lora_rank))
        lora.freeze_in(module, torch.bfloat16)
    ranks = LoneRank(0, scenario.ranks)
    loss_module = model_loading.sharded_loss_module(module, ranks, CUDA, torch.bfloat16)
    loss_module.to_empty(device=CUDA)
    module.tie_weights(recompute_mapping=False)
    gc.collect()
    module.train()
    return TrainedModel(
        loss_module=loss_module,
        folder=Path(),
        device=CUDA,
        cost=cost,
        wire_dtypes={},
        default_wire_dtype="BF16",
        ranks=ranks,
        compute_dtype=torch.bfloat16,
    )


def _marks_around_update(trainer: Trainer, tracker: Tracker) -> dict[str, Any]:
    """Notes the peak of forward and backward when the update begins, and lets that of the update begin there."""
    marks: dict[str, Any] = {}
    update = trainer._update

    def marked(tokens: int) -> float:
        marks.update(peak=tracker.peak, live=tracker.live, operator=tracker.peak_operator)
        tracker.start_peak()
        return update(tokens)

    trainer._update = marked  # type: ignore[method-assign]
    return marks


def _samples(scenario: Scenario) -> Iterator[TrainingSample]:
    generator = np.random.default_rng(0)
    vocabulary = scenario.model["vocab_size"]
    for position in range(scenario.sequences):
        prompt, response = (
            generator.integers(0, vocabulary, n).astype(np.int32)
            for n in (scenario.prompt_tokens, scenario.response_tokens)
        )
        rollout = Rollout(
            task_id=f"r000000-{position:05d}",
            sample=0,
            round=0,
            position=position,
            prompt_tokens=prompt,
            response_tokens=response,
            finish_reason="stop",
            temperature=1.0,
            spans=(VersionSpan(weight_version=0, start=0, end=response.size),),
            generator_id="g",
            queued_s=0.0,
            generate_s=0.0,
        )
        yield TrainingSample(rollout, 1.0)
