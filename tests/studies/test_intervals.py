"""Intervals over seeds and over problems, and verdicts that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from studies.intervals import Interval, Scored, counts_in, judge_claim, over_problems, over_seeds


def by_seed(*averages: float) -> list[Scored]:
    return [Scored(seed, 4, average, {}) for seed, average in enumerate(averages)]


def by_problem(*counts: Sequence[int], seed: int = 0) -> Scored:
    return Scored(seed, 4, 0.0, {f"b{number}": of_problems for number, of_problems in enumerate(counts)})


def test_the_interval_over_seeds_is_students() -> None:
    interval = over_seeds([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - interval.mean == pytest.approx(4.303 / 3**0.5)
    assert over_seeds([5.0]).high == float("inf")


def test_an_interval_says_what_it_is_over() -> None:
    assert str(Interval(50.0, 48.0, 52.0)) == "50.0 ± 2.0"
    assert str(Interval(50.0, 48.0, 53.0, "problems")) == "50.0 [48.0, 53.0]"
    assert str(over_seeds([50.0])) == "50.0"
    assert Interval(50.0, 48.0, 53.0, "problems").minus(40.0) == Interval(10.0, 8.0, 13.0, "problems")


def test_pass_at_k_is_averaged_over_problems_then_benchmarks_then_runs() -> None:
    run = by_problem([4, 0], [2])
    assert over_problems([run], [1]).mean == pytest.approx(50.0)
    assert over_problems([run], [4]).mean == pytest.approx(75.0)
    assert over_problems([run, by_problem([4, 4], [2], seed=1)], [1]).mean == pytest.approx(62.5)
    interval = over_problems([by_problem([4, 0] * 50)], [1])
    assert 38 < interval.low < 45 < 55 < interval.high < 62


def test_a_difference_over_problems_is_paired() -> None:
    """Problems differ much more than the two runs do on each of them."""
    worse, better = by_problem([0, 3] * 40), by_problem([1, 4] * 40)
    difference = over_problems([better], [1], minus=[worse])
    assert (difference.low, difference.mean, difference.high) == pytest.approx((25.0, 25.0, 25.0))


@pytest.mark.parametrize(
    ("better", "verdict"),
    [((95.0, 96.0, 95.5), "holds"), ((80.0, 81.0, 80.5), "does not hold"), ((85.0, 97.0, 90.0), "undecided")],
)
def test_verdicts_follow_from_the_interval_of_the_difference(better: tuple[float, ...], verdict: str) -> None:
    assert judge_claim("x", by_seed(*better), by_seed(90.0, 90.5, 90.2)).verdict == verdict


def test_one_seed_without_its_problems_decides_nothing() -> None:
    assert judge_claim("x", by_seed(99.0), by_seed(1.0)).verdict == "undecided"


def test_few_seeds_are_compared_over_problems() -> None:
    worse, better = by_problem([1, 2] * 40), by_problem([2, 3] * 40)
    result = judge_claim("x", [better, by_problem([2, 3] * 40, seed=1)], [worse])
    assert (result.verdict, result.difference.over) == ("holds", "problems")
    assert judge_claim("x", [worse], [better]).verdict == "does not hold"
    assert judge_claim("x", [better], [by_problem([1, 2])]).verdict == "undecided", "these are other problems"


def test_the_untrained_model_is_compared_with_every_seed() -> None:
    three, one = by_seed(95.0, 96.0, 95.5), by_seed(90.0)
    assert judge_claim("x", three, one).difference.mean == pytest.approx(5.5)
    assert judge_claim("x", one, three).difference.mean == pytest.approx(-5.5)


def test_results_of_an_older_release_have_no_counts() -> None:
    benchmarks = {"a": {"correct": [1, 2]}, "b": {}}
    assert counts_in({"temperatures": {"0.6": {"benchmarks": benchmarks}}}, 0.6) == {"a": [1, 2]}
