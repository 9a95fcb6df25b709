"""Before and around a generator's work: its seed, and which error is reported as the cause of its end."""

from __future__ import annotations

from generator.run import _first_error, _seed


def test_generators_do_not_sample_alike_and_one_that_restarts_samples_as_before() -> None:
    seeds = {name: _seed(name) for name in [*(f"generator-{index}" for index in range(100)), "guest", "generator"]}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 1 << 32 for seed in seeds.values())
    assert seeds["generator-0"] == 2948752208, "the same in every process: no salted hash"


def test_the_first_of_nested_errors_is_the_cause() -> None:
    cause = ValueError("cause")
    nested = BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [cause, KeyError()]), OSError()])
    assert _first_error(nested) is cause
