"""GPUs of one host, given to one container each: real locks, held by real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.containers.claim_gpus import claim, prepare
from services.errors import ConfigError, UnavailableError

HOLDER = """
import os
import sys
from pathlib import Path
from deploy.containers.claim_gpus import claim
taken = ",".join(claim(sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[1])))
then = f"import sys; print('{taken}', flush=True); sys.stdin.read()"
os.execv(sys.executable, [sys.executable, "-c", then])
"""
"""Claims, then becomes another program, as the module does: the locks must outlast that."""


@contextmanager
def holder(folder: Path, gpus: str, count: int = 1) -> Iterator[str]:
    """Another process that has claimed; yields what it got, and ends with the block."""
    command = [sys.executable, "-c", HOLDER, str(folder), gpus, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_each_gets_its_own_and_gives_it_back_by_ending(tmp_path: Path) -> None:
    with holder(tmp_path, "0,1,2") as first, holder(tmp_path, "0,1,2") as second:
        assert (first, second) == ("0", "1")
        with pytest.raises(UnavailableError, match="2 GPUs are asked for, 1 of 3 are free"):
            claim(["0", "1", "2"], 2, tmp_path)
    with holder(tmp_path, "0,1,2", 3) as everything:
        assert everything == "0,1,2"


def test_a_refused_claim_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path, "0,1"), pytest.raises(UnavailableError):
        claim(["0", "1"], 2, tmp_path)
    with holder(tmp_path, "0,1", 2) as everything:
        assert everything == "0,1"


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4 GPUs are asked for, this container sees 2"):
        prepare(["learner"], ["0", "1"], 4, tmp_path)


def test_of_several_gpus_a_part_sees_its_own(tmp_path: Path) -> None:
    assert prepare(["learner", "--config", "x"], ["0", "1", "2"], 2, tmp_path) == (
        ["learner", "--config", "x"],
        {"CUDA_VISIBLE_DEVICES": "0,1"},
    )


def test_the_only_gpu_is_for_the_learner_and_one_generator(tmp_path: Path) -> None:
    with holder(tmp_path, "0"), pytest.raises(UnavailableError, match="1 GPUs are asked for, 0 of 1 are free"):
        prepare(["generator"], ["0"], 1, tmp_path)
