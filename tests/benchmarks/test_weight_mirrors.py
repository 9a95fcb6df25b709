"""Generators of one host hold the weights once."""

from __future__ import annotations

from benchmarks.weight_mirrors import measure


def test_three_generators_hold_a_little_more_than_one_copy() -> None:
    together = measure(generators=3, megabytes=40, updates=1, share=0.001, apart=False)
    assert together["memory_mb"] < 2 * 40
