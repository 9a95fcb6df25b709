"""The demo's task: two-digit additions, a small model that learnt them from bad examples, and how often it is right.

A problem reads "47+85=", its answer is the sum as three digits in reverse, "231": carries then go left to right.
The pre-training examples are wrong in 30 % of cases, so the model is unsure of what it could know: what
self-training sharpens. The hard case is a model that was misled: where the units carry, most examples drop the carry,
so that its most frequent answer is wrong and sharpening makes it worse.

Legend of shapes: B examples, T tokens of prompt and answer, V vocabulary.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from deploy.settings import Settings
from learner.evaluation.benchmarks import resolve_benchmark
from services import durable

END = "<end>"
CHARACTERS = "0123456789+="
ANSWER_DIGITS = 3
HELD_OUT = 200
"""Problems that neither pre-training nor self-training sees."""

CORRUPTED = 0.3
"""Share of pre-training answers that are wrong."""
MOST_OFF = 20
"""A wrong answer lies within this of the right one."""
MISLED = 0.6
"""Share of a misled model's examples, of those whose units carry, that drop the carry."""
SLIPS = 0.1
"""Share of its other examples that are wrong."""
STEPS = 2000
BATCH = 128
LEARNING_RATE = 1e-3
REPORT_EVERY = 250

Problem = tuple[int, int]
Example = Callable[[Problem, random.Random], str]
"""(problem, draw) -> the answer of a pre-training example."""


def question_of(problem: Problem) -> str:
    """(47, 85) -> '47+85='."""
    return f"{problem[0]:02d}+{problem[1]:02d}="


def answer_of(total: int) -> str:
    """132 -> '231'."""
    return f"{total:0{ANSWER_DIGITS}d}"[::-1]


def split_problems(seed: int = 0) -> tuple[list[Problem], list[Problem]]:
    """All two-digit additions in shuffled order: those to train on, and the held-out ones."""
    problems = [(left, right) for left in range(100) for right in range(100)]
    random.Random(seed).shuffle(problems)
    return problems[HELD_OUT:], problems[:HELD_OUT]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; the id order is CHARACTERS, then END, which also pads."""
    vocabulary = {token: index for index, token in enumerate([*CHARACTERS, END])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()  # "231", not "2 3 1"
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    made: PreTrainedTokenizerFast = fast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=END)
    return made


def make_model(seed: int = 0) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.5 M parameters; its head size, 32, is the smallest that vLLM's CPU attention takes."""
    end = len(CHARACTERS)
    torch.manual_seed(seed)
    qwen2: Any = Qwen2ForCausalLM  # untyped in transformers
    model: Qwen2ForCausalLM = qwen2(
        Qwen2Config(
            vocab_size=len(CHARACTERS) + 1,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    return model


def pretrain(
    model: Qwen2ForCausalLM,
    problems: list[Problem],
    report: Callable[[str], None],
    *,
    example: Example | None = None,
    seed: int = 0,
) -> None:
    """Teach the model additions from examples, each drawn anew; `example`: `noisy_example` by default."""
    answer = example or noisy_example
    torch.set_num_threads(1)  # for matrices this small, more threads wait for each other longer than they work
    tokenizer, draw = make_tokenizer(), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(1, STEPS + 1):
        texts = [question_of(problem) + answer(problem, draw) for problem in draw.choices(problems, k=BATCH)]
        tokens_BT = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts])
        labels_BT = tokens_BT.clone()
        labels_BT[:, : len(question_of((0, 0)))] = -100
        loss = model(input_ids=tokens_BT, labels=labels_BT).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % REPORT_EVERY == 0:
            report(f"pre-training: step {step} of {STEPS}, loss {loss.item():.3f}")


def noisy_example(problem: Problem, draw: random.Random) -> str:
    """Of the demo's model: wrong in CORRUPTED of the draws."""
    return example_answer(sum(problem), draw)


def misled_example(problem: Problem, draw: random.Random) -> str:
    """Of the misled model: without its carry in MISLED of the draws where the units carry; else wrong in SLIPS."""
    if units_carry(problem) and draw.random() < MISLED:
        return answer_of(sum(problem) - 10)
    return example_answer(sum(problem), draw, SLIPS)


def units_carry(problem: Problem) -> bool:
    """(47, 85): 7 + 5 carry."""
    return sum(number % 10 for number in problem) >= 10


def example_answer(total: int, draw: random.Random, corrupted: float = CORRUPTED) -> str:
    """The right answer, or, in `corrupted` of the draws, one that is 1 to MOST_OFF off."""
    if draw.random() >= corrupted:
        return answer_of(total)
    return answer_of(max(0, total + draw.choice((-1, 1)) * draw.randint(1, MOST_OFF)))


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write model (bfloat16) and tokenizer as a Hugging Face folder, whole or not at all."""
    _hide_progress_bars()
    with durable.new_folder(folder) as partial:
        torch.nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(partial)
        make_tokenizer().save_pretrained(partial)


def save_pretrained_model(
    folder: Path, problems: list[Problem], report: Callable[[str], None], example: Example | None = None
) -> None:
    """Pre-train the model on the problems and save it, unless the folder exists."""
    if folder.exists():
        report(f"the pre-trained model exists: {folder}")
        return
    report("pre-training a small addition model on partly wrong examples, once ...")
    model = make_model()
    pretrain(model, problems, report, example=example)
    save(model, folder)


def prepare(
    settings: Settings, report: Callable[[str], None], *, with_answers: bool = False, example: Example | None = None
) -> None:
    """Make what a run on additions needs: its prompts, its benchmarks and, unless they exist, the model.

    `with_answers`: for methods that learn from them. `example`: as for `pretrain`.
    """
    train, held_out = split_problems()
    write_prompts(train, Path(settings.data.path), with_answers=with_answers)
    for _, path, _ in map(resolve_benchmark, settings.evaluation.benchmarks):
        if not Path(path).exists():
            write_prompts(held_out, Path(path), with_answers=True)
    save_pretrained_model(Path(settings.model.path), train, report, example)


def write_prompts(problems: list[Problem], path: Path, *, with_answers: bool = False) -> None:
    """Questions, and their answers if the data is for an evaluation or a method that needs them."""

    def row(problem: Problem) -> dict[str, str]:
        answer = {"answer": answer_of(sum(problem))} if with_answers else {}
        return {"question": question_of(problem)} | answer

    with durable.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(path, "".join(json.dumps(row(problem)) + "\n" for problem in problems))


@torch.inference_mode()
def pass_at_1(folder: Path, problems: list[Problem], *, samples: int = 8, seed: int = 0) -> float:
    """Share of right answers, sampled at temperature 1; an answer is right when every digit and the end are."""
    _hide_progress_bars()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = make_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    asked = [problem for problem in problems for _ in range(samples)]
    tokens_BT = torch.tensor([tokenizer.encode(question_of(problem)) for problem in asked])
    for _ in range(ANSWER_DIGITS + 1):
        logits_BV = model(input_ids=tokens_BT).logits[:, -1]
        next_B1 = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, next_B1], dim=1)
    given: list[list[int]] = tokens_BT[:, -(ANSWER_DIGITS + 1) :].tolist()
    right = [[*tokenizer.encode(answer_of(sum(problem))), tokenizer.eos_token_id] for problem in asked]
    return sum(one == other for one, other in zip(given, right, strict=True)) / len(asked)


def _hide_progress_bars() -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar for 40 small tensors
