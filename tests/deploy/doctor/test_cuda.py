"""A driver that cannot run PyTorch's CUDA is named with the one that can."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.doctor.cuda import driver_problem, driver_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC ...", (550, 54)),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@x)", (580, 95)),
        ("something else", None),
    ],
)
def test_the_driver_says_its_version(tmp_path: Path, text: str, expected: tuple[int, int] | None) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == expected


def test_without_a_driver_there_is_no_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "version") is None


@pytest.mark.parametrize(
    ("driver", "cuda"), [((580, 65), "13.0"), ((590, 10), "13.2"), ((525, 60), "12.8"), ((600, 0), "14.0")]
)
def test_drivers_run_the_releases_that_they_are_for(driver: tuple[int, int], cuda: str) -> None:
    assert driver_problem(driver, cuda) is None


@pytest.mark.parametrize(
    ("driver", "cuda", "says", "remedy"),
    [
        (
            (550, 54),
            "13.0",
            "driver 550.54 is too old for CUDA 13.0",
            "at least 580.65, or a PyTorch built for CUDA 12",
        ),
        ((400, 0), "12.8", "too old", "at least 525.60"),
        (None, "13.0", "does not answer", "nvidia-smi"),
        ((580, 65), None, "without CUDA", "requirements/cuda.txt"),
    ],
)
def test_others_come_with_their_remedy(
    driver: tuple[int, int] | None, cuda: str | None, says: str, remedy: str
) -> None:
    problem = driver_problem(driver, cuda)
    assert problem is not None
    assert says in problem[0]
    assert remedy in problem[1]
