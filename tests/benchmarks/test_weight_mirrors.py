"""Generators of one host hold the weights once."""

from __future__ import annotations

from benchmarks.weight_mirrors import measure


def test_three_generators_hold_less_than_three_copies() -> None:
    together = measure(generators=3, megabytes=60, updates=1, share=0.001, apart=False)
    assert together["memory_mb"] < 3 * 60
