"""A small study's file: two methods, two seeds, a sweep."""

from __future__ import annotations

from pathlib import Path

FILE = """
[study]
title = "t"
dir = "runs/t"
seeds = [0, 1]
sweep = [0.2, 1.0]
claims = [{ text = "a beats b", better = "a", worse = "b" }]
[common.training]
rounds = 3
[common.evaluation]
benchmarks = ["held=held.jsonl"]
[methods.a]
label = "A"
[methods.b.training]
tau_t = 0.6
"""


def study_file(path: Path, text: str = FILE) -> Path:
    (path / "study.toml").write_text(text)
    return path / "study.toml"
