"""The example runs fit the machines that they name, by the estimate and without their weights."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.load_settings import load
from deploy.placement import place
from deploy.run_memory import MachineMemory, plan_memory
from learner.memory.fitting import Room, check_fits, fits
from learner.memory.machine import HostMemory
from learner.memory.model_shape import ModelShape, shape_of_config
from tests.support.model_configs import CONFIGS

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
    placement = place(
        list(gpus),
        64,
        ranks=settings.training.ranks,
        generators=settings.generator.count,
        tensor_parallel=settings.generator.tensor_parallel,
    )
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


def test_32b_fits_two_nodes_of_eight_and_not_one() -> None:
    settings = load(CONFIG / "qwen2.5-32b-two-nodes.toml", environ={})
    room = Room("cuda", int(USABLE[80] * GIB), devices=8)
    check_fits(shape_of(settings.model.path), settings, room)
    one_node = settings.model_copy(update={"training": settings.training.model_copy(update={"ranks": 8})})
    assert not fits(shape_of(settings.model.path), one_node, room)
