"""The example runs fit the machines that they name, by the estimate and without their weights."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.load_settings import load
from deploy.run_memory import MachineMemory, place_parts, plan_memory
from learner.data.dataset import Question
from learner.data.prompts import template_of, tokenize
from learner.data.stop_tokens import stop_token_ids
from learner.memory.fitting import Room, check_fits, fits
from learner.memory.machine import HostMemory
from learner.memory.model_shape import ModelShape, shape_of_config
from learner.model_folder.tokenizer import load_tokenizer
from tests.support.model_configs import CONFIGS
from tests.support.paper_models import DEEPSEEK_SPECIAL, PAPER_MODELS, REASON, save_stand_in

CONFIG = Path(__file__).parents[2] / "deploy" / "config"
PAPER = sorted(path.stem for path in CONFIG.glob("paper-*.toml"))
GIB = 1 << 30
USABLE = {80: 79.1, 141: 139.8}
"""GiB that the driver shows of a GPU that is sold as so many GB: H100 and A100, H200."""
HOST_GIB = 1000


def shape_of(model: str) -> ModelShape:
    shape = shape_of_config(CONFIGS[model.rpartition("/")[2]])
    assert shape is not None
    return shape


def machines() -> Iterator[tuple[int, int, str]]:
    """(GPUs, GB of each, what to add) of every machine that the paper's file names."""
    text = (CONFIG / "paper.toml").read_text().replace("\n#                  --set", " --set")
    for count, size, sets in re.findall(r"^#   (\d+) x (\d+) GB +([^(\n]*)", text, re.M):
        yield int(count), int(size), sets.strip()


@pytest.mark.parametrize(("count", "size", "sets"), list(machines()))
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_fit_every_machine_that_is_named(name: str, count: int, size: int, sets: str) -> None:
    if (count, size) == (2, 80) and "llama" in name:
        pytest.skip("the file says that it needs a third GPU")
    words = shlex.split(sets)
    settings = load(CONFIG / f"{name}.toml", words[1::2], environ={})
    assert set(words[::2]) <= {"--set"}
    gpus = {str(index): int(USABLE[size] * GIB) for index in range(count)}
    placement = place_parts(settings, gpus=list(gpus))
    assert not placement.shared
    host = HostMemory(limit=HOST_GIB * GIB, available=HOST_GIB * GIB)
    memory = plan_memory(shape_of(settings.model.path), settings, placement, MachineMemory(host, gpus))
    assert memory.sequences is not None and memory.sequences >= 16
    assert settings.training.ranks + settings.generator.count <= count


def test_machines_of_2_4_and_8_gpus_are_named() -> None:
    assert {(count, size) for count, size, _ in machines()} >= {(8, 80), (4, 80), (2, 80), (8, 141), (2, 141)}


def test_all_models_of_the_paper_have_a_file() -> None:
    assert len(PAPER) == 5
    for name in PAPER:
        settings = load(CONFIG / f"{name}.toml", environ={})
        assert settings.model.path.rpartition("/")[2].lower() == name.removeprefix("paper-")


ASKED = "1+1?"
BEGIN, END = DEEPSEEK_SPECIAL
TURN = "<|im_start|>{}\n{}<|im_end|>\n"
PROMPTS = {
    "Qwen2.5-Math-7B": TURN.format("system", REASON) + TURN.format("user", ASKED) + "<|im_start|>assistant\n",
    "Qwen2.5-7B": TURN.format("system", REASON) + TURN.format("user", ASKED) + "<|im_start|>assistant\n",
    "Qwen2.5-7B-Instruct": TURN.format("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    + TURN.format("user", f"{ASKED} {REASON}")
    + "<|im_start|>assistant\n",
    "deepseek-math-7b-instruct": f"{BEGIN}{REASON}\n\nUser: {ASKED}\n\nAssistant:",
    "Llama-3.1-8B-Instruct": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{ASKED} {REASON}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}
"""What each of the paper's models is asked, special tokens included."""
STOPS = {
    "Qwen2.5-Math-7B": {"<|endoftext|>", "<|im_end|>"},  # its generation_config.json has the first alone
    "Qwen2.5-7B": {"<|endoftext|>", "<|im_end|>"},
    "Qwen2.5-7B-Instruct": {"<|endoftext|>", "<|im_end|>"},
    "deepseek-math-7b-instruct": {END},
    "Llama-3.1-8B-Instruct": {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"},
}
"""What ends an answer: no model goes on to a turn that it invents, whose box would be graded."""


def ids_of(text: str, special: tuple[str, ...], vocabulary: dict[str, int]) -> list[int]:
    """Of a text whose special tokens have ids of their own and whose other characters, all ASCII, have one each."""
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, special))})", text):
        letters = [piece] if piece in special else piece.replace(" ", "Ġ").replace("\n", "Ċ")
        ids += [vocabulary[letter] for letter in letters]
    return ids


@pytest.mark.parametrize("name", PAPER)
def test_a_question_reaches_the_papers_models_as_the_papers_code_asks_it(name: str, tmp_path: Path) -> None:
    settings = load(CONFIG / f"{name}.toml", environ={})
    model = settings.model.path.rpartition("/")[2]
    tokenizer = load_tokenizer(save_stand_in(tmp_path / "model", model))
    question = Question(0, ({"role": "user", "content": ASKED},), None)
    (prompt,) = tokenize([question], settings.data, tokenizer)
    special = PAPER_MODELS[model].special
    assert prompt.tokens.tolist() == ids_of(PROMPTS[model], special, tokenizer.get_vocab())
    stops = stop_token_ids(tmp_path / "model", tokenizer, template_of(settings.data, tokenizer))
    assert set(tokenizer.convert_ids_to_tokens(list(stops))) == STOPS[model]


def test_models_made_for_mathematics_begin_at_a_lower_temperature() -> None:
    starts = {name: load(CONFIG / f"{name}.toml", environ={}).sampling.tau_start for name in PAPER}
    assert starts == {name: 0.6 if "math" in name else 0.9 for name in PAPER}


def test_32b_fits_two_nodes_of_eight_and_not_one() -> None:
    settings = load(CONFIG / "qwen2.5-32b-two-nodes.toml", environ={})
    room = Room("cuda", int(USABLE[80] * GIB), devices=8)
    check_fits(shape_of(settings.model.path), settings, room)
    one_node = settings.model_copy(update={"training": settings.training.model_copy(update={"ranks": 8})})
    assert not fits(shape_of(settings.model.path), one_node, room)
