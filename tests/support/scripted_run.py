"""A run small enough for any placement: a random model of 0.1 M parameters, 40 prompts, generators by script.

The same world on local, compose and Ray must give the same rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from generator.engines.scripted import VOCABULARY as SCRIPTED
from services.contracts import Rollout, VersionSpan

VOCABULARY = SCRIPTED + 2
"""Every scripted token, the end, and one more: the learner must know each id that it is given."""
PROMPTS = 40
DEADLINE_S = 200.0

CONFIG = """\
[run]
dir = "{run}"
seed = 7

[model]
path = "{model}"

[data]
path = "{prompts}"
chat_template = "none"
max_prompt_tokens = 16

[sampling]
tau_start = 0.5
anneal_epochs = 1.0
max_response_tokens = {response_tokens}

[training]
rounds = {rounds}
prompts_per_round = {prompts_per_round}
steps_per_round = 2
max_staleness = 1
learning_rate = 1e-3
warmup_steps = 0
micro_batch_tokens = 2048
device = "cpu"
ranks = {ranks}

[generator]
engine = "scripted"
max_in_flight = {in_flight}

[redis]
lease_s = 5.0

[deadlines]
startup_s = 120.0
rollouts_s = 120.0
weights_s = 120.0
drain_s = 5.0
"""


def write(
    folder: Path,
    *,
    seen_at: str | None = None,
    run: str | None = None,
    rounds: int = 6,
    prompts_per_round: int = 16,
    response_tokens: int = 32,
    in_flight: int = 16,
    ranks: int = 1,
    shape: Mapping[str, int] | None = None,
) -> Path:
    """Model, prompts and config below `folder`; returns the config. `shape`: other sizes of the model's config.

    `seen_at`: where the parts see that folder; `run`: the run's folder as they see it.
    """
    write_model(folder / "model", shape or {})
    questions = [{"question": f"{number:04d}"} for number in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    seen = seen_at or str(folder)
    config = folder / "run.toml"
    config.write_text(
        CONFIG.format(
            run=run or f"{seen}/run",
            model=f"{seen}/model",
            prompts=f"{seen}/prompts.jsonl",
            rounds=rounds,
            prompts_per_round=prompts_per_round,
            response_tokens=response_tokens,
            in_flight=in_flight,
            ranks=ranks,
        )
    )
    return config


SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def write_model(folder: Path, shape: Mapping[str, Any]) -> None:
    """A random Qwen2 with a tokenizer of one token per character."""
    import torch
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    end = VOCABULARY - 1
    # digits first, so that prompts are made of them; the rest are letters that mean nothing
    vocabulary = {character: index for index, character in enumerate("0123456789")}
    vocabulary |= {chr(0x400 + index): index for index in range(len(vocabulary), end)} | {"<end>": end}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    untyped: Any = PreTrainedTokenizerFast
    untyped(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    qwen2: Any = Qwen2ForCausalLM
    model = qwen2(
        Qwen2Config(
            vocab_size=VOCABULARY,
            **(SHAPE | dict(shape)),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)


async def sept(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """The command, started, with these variables beside those of this process."""
    command = (sys.executable, "-m", "sept", *map(str, arguments))
    return await asyncio.create_subprocess_exec(*command, env={**os.environ, **(environ or {})})


async def finish(process: asyncio.subprocess.Process, *, within_s: float = DEADLINE_S) -> int:
    """Its exit code; killed when it takes too long."""
    try:
        return await asyncio.wait_for(process.wait(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def rollouts_of(run: Path) -> list[dict[str, Any]]:
    """What the run recorded of its rollouts, rounds in order."""
    lines = (line for path in sorted((run / "rollouts").glob("*.jsonl")) for line in path.read_bytes().splitlines())
    return [json.loads(line) for line in lines]


def rounds_of(run: Path) -> list[tuple[int, float, list[str]]]:
    """What must not depend on placement: of every round its number, tau_s, and its questions in training order."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    found = []
    for line in metrics:
        path = run / "rollouts" / f"round-{line['round']:06d}.jsonl"
        answers = [json.loads(text) for text in path.read_bytes().splitlines()]
        found.append((line["round"], line["tau_s"], [answer["question"] for answer in answers]))
    return found


def expected_rounds(config: Path, model: Path, prompts: Path) -> list[tuple[int, float, list[str]]]:
    """What `rounds_of` must find, from the curriculum alone."""
    from transformers import AutoTokenizer

    from deploy.load_settings import load
    from learner.data.curriculum import Curriculum
    from learner.data.prompts import load_prompts

    settings = load(config, [f"data.path={prompts}"], environ={})
    tokenizer = AutoTokenizer.from_pretrained(model)
    curriculum = Curriculum(
        load_prompts(settings.data, tokenizer),
        seed=settings.run.seed,
        training=settings.training,
        sampling=settings.sampling,
        stop_token_ids=(VOCABULARY - 1,),
    )
    return [
        (
            round_,
            curriculum.tasks_of(round_)[0].temperature,
            [prompt.question for prompt in curriculum.prompts_of(round_)],
        )
        for round_ in range(curriculum.rounds_total)
    ]


def losses_of(run: Path) -> list[float]:
    """The losses that a run recorded, rounds in order."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def losses_of_one_rank(config: Path, run: Path) -> list[float]:
    """What one rank, here, loses on the rollouts that the run recorded: its curve, up to rounding."""
    from transformers import AutoTokenizer

    from deploy.load_settings import load
    from learner.model.model_loading import load_model
    from learner.training.batch_sharding import TrainingSample
    from learner.training.trainer import Trainer

    settings = load(config, environ={})
    tokenizer = AutoTokenizer.from_pretrained(settings.model.path)
    trainer = Trainer(load_model(settings.model.path, device="cpu"), settings.training)
    losses = []
    for path in sorted((run / "rollouts").glob("round-*.jsonl")):
        answers = [json.loads(line) for line in path.read_bytes().splitlines()]
        samples = [TrainingSample(_rollout_of(answer, tokenizer)) for answer in answers]
        losses.append(trainer.train_round(samples).loss)
    return losses


def _rollout_of(answer: dict[str, Any], tokenizer: Any) -> Rollout:
    """The rollout that was recorded: a character is a token here, and the last one of a whole answer does not show."""
    tokens = tokenizer.convert_tokens_to_ids(list(answer["answer"]))
    tokens += [VOCABULARY - 1] if answer["finish_reason"] == "stop" else []
    assert len(tokens) == answer["response_tokens"]
    return Rollout(
        task_id=answer["rollout_id"].rpartition(".")[0],
        prompt_tokens=np.array(tokenizer.convert_tokens_to_ids(list(answer["question"])), np.int32),
        response_tokens=np.array(tokens, np.int32),
        spans=tuple(VersionSpan(weight_version=v, start=a, end=b) for v, a, b in answer["spans"]),
        **{key: answer[key] for key in ("sample", "round", "position", "finish_reason", "temperature", "generator_id")},
        **{key: answer[key] for key in ("queued_s", "generate_s")},
    )
