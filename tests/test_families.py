"""Every family is trained as transformers computes it and served as vLLM computes it, or refused by name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.model_loading import load_model
from learner.model.packing import Sequence, pack_sequences
from services.errors import ModelError
from services.run_folder import RunFolder
from services.weights.export import export_version
from services.weights.reader import WeightReader
from tests.support import families
from tests.support.families import REFUSED, REFUSED_BY_ENGINE, SERVED
from tests.support.plain_model import plain_model
from tests.support.scripted_run import finish, sept
from tests.support.vllm_models import update_between

ROUNDS = 5
EXACT = 1e-5
"""Nats; of float32 arithmetic in two libraries."""
QUICK = ("qwen2-tied", "gemma3", "starcoder2-dropout", "mixtral-jitter")
BAD_INPUT = 3
RUN_WITHIN_S = 1200.0
"""On a machine that does thirty other things; 50 s on an idle one."""

IN_EVERY_RUN = ("qwen2-tied", "qwen3-moe", "gemma3", "phi3")
"""Tied weights, experts, windows in some layers, fused layers in the checkpoint: the others are marked slow."""
CONFIG = """
[run]
dir = "{folder}/run"
[model]
path = "{folder}/model"
[data]
path = "{folder}/prompts.jsonl"
max_prompt_tokens = 100
[sampling]
tau_start = 0.6
schedule = "constant"
max_response_tokens = 24
[training]
rounds = {rounds}
prompts_per_round = 8
steps_per_round = 2
max_staleness = 1
learning_rate = 1e-3
warmup_steps = 1
micro_batch_tokens = 512
device = "cpu"
[generator]
max_in_flight = 8
cpu_cache_gib = 0.2
[services]
port = 0
"""


def sequences(*lengths: int) -> list[Sequence]:
    random = np.random.default_rng(0)
    tokens = [random.integers(4, 260, length).astype(np.int32) for length in lengths]
    return [Sequence(each[:5], each[5:]) for each in tokens]


def own_log_probs(model: Any, sequence: Sequence) -> torch.Tensor:
    """[R] of the response, by transformers."""
    tokens = torch.from_numpy(np.concatenate([sequence.prompt_tokens, sequence.response_tokens]).astype(np.int64))
    log_probs_TV = model(input_ids=tokens[None, :-1], use_cache=False).logits[0].log_softmax(-1)
    found: torch.Tensor = log_probs_TV.gather(-1, tokens[1:, None])[sequence.prompt_tokens.size - 1 :, 0]
    return found


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        pytest.param(name, recompute, marks=[] if name in QUICK and recompute == "full" else [pytest.mark.slow])
        for name in SERVED
        for recompute in ("off", "light", "full")
    ],
)
def test_losses_and_gradients_in_training_are_transformers_own(tmp_path: Path, name: str, recompute: Any) -> None:
    folder = families.save(SERVED[name], tmp_path)
    model, plain = load_model(str(folder), device="cpu", gradient_checkpointing=recompute), plain_model(folder)
    together = sequences(30, 120, 12)
    batch = pack_sequences(together)
    losses = model.token_losses(batch, nll, Targets(batch.targets), 1.0)
    losses.loss.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([own_log_probs(plain, sequence) for sequence in together])
    (-expected.sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.log_probs, expected.detach(), rtol=0, atol=EXACT)
    gradients = {weight: p.grad for weight, p in model.module.named_parameters()}
    for weight, parameter in plain.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[weight], parameter.grad, rtol=0, atol=1e-4 * max(scale, 1.0))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_learner_would_train_wrongly_is_refused(tmp_path: Path, name: str) -> None:
    family, reason = REFUSED[name]
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(str(families.save(family, tmp_path)), device="cpu")
    assert caught.value.hint


@pytest.mark.vllm
@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.slow) for name in SERVED]
)
async def test_a_run_and_its_updates_are_exact(tmp_path: Path, name: str) -> None:
    assert await run(families.save(SERVED[name], tmp_path / "model").parent) == 0
    folder = RunFolder(tmp_path / "run")
    assert len(folder.metrics.read_text().splitlines()) == ROUNDS
    log = folder.log_of("generator-0").read_text()
    assert "canary_failed" not in log
    store = WeightReader(folder.weights, folder.run_id)
    versions = [store.load(version) for version in range(ROUNDS + 1)]
    for version in (0, ROUNDS):
        export_version(folder, tmp_path / str(version), version)
    engine = create_engine(
        GeneratorConfig(max_in_flight=4, cpu_cache_gib=0.2, dtype="float32"), max_model_len=160, cache=tmp_path / "e"
    )
    long = sequences(30, 120)
    try:
        await engine.start(tmp_path / "0", 0)
        for version in range(1, ROUNDS + 1):
            await engine.apply(update_between(version, versions[version - 1], versions[version]))
        served = await engine.checksums()
        scored = [await engine.score([*s.prompt_tokens.tolist(), *s.response_tokens.tolist()]) for s in long]
    finally:
        await engine.stop()
    published = {entry.name: entry.digest for entry in store.manifest(ROUNDS).tensors}
    assert served is not None
    assert {tensor: digest for tensor, digest in served.items() if tensor in published} == published
    plain = plain_model(tmp_path / str(ROUNDS))
    for sequence, log_probs in zip(long, scored, strict=True):
        assert log_probs is not None
        with torch.no_grad():
            expected = own_log_probs(plain, sequence)
        assert log_probs[-len(expected) :] == pytest.approx(expected.tolist(), abs=EXACT)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", REFUSED | REFUSED_BY_ENGINE)
async def test_a_run_that_cannot_be_right_ends_with_its_reason_and_no_restart(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    family, reason = (REFUSED | REFUSED_BY_ENGINE)[name]
    assert await run(families.save(family, tmp_path / "model").parent) != 0
    assert reason in " ".join(capfd.readouterr().err.split())
    assert "part_died" not in RunFolder(tmp_path / "run").log_of("supervisor").read_text()


async def run(folder: Path) -> int:
    """The exit code of `sept run` over the model in `folder`."""
    questions = [json.dumps({"question": f"What is {i} plus {i * 7 % 53}?"}) for i in range(40)]
    await asyncio.to_thread((folder / "prompts.jsonl").write_text, "\n".join(questions))
    await asyncio.to_thread((folder / "run.toml").write_text, CONFIG.format(folder=folder, rounds=ROUNDS))
    return await finish(await sept("run", folder / "run.toml"), within_s=RUN_WITHIN_S)
