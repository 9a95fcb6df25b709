from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.evaluation.pass_at_k import pass_at_k, pass_table
from services.errors import DataError


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(n: int) -> None:
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(samples, k))
            assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)


@given(n=st.integers(1, 40), p=st.floats(0, 1), data=st.data())
def test_its_expectation_is_the_chance_that_k_fresh_samples_hold_a_correct_one(
    n: int, p: float, data: st.DataObject
) -> None:
    """E over c ~ Binomial(n, p) of pass@k equals 1 - (1 - p)^k, summed exactly over all c."""
    k = data.draw(st.integers(1, n))
    weights = np.array([1.0])
    for _ in range(n):
        weights = np.convolve(weights, [1 - p, p])
    expectation = sum(weight * pass_at_k(n, c, k) for c, weight in enumerate(weights))
    assert expectation == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


@given(st.integers(1, 64), st.data())
def test_it_grows_with_k_and_with_c(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == float(c > 0)
    if k < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)
    if c < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}, c = {c}, k = {k}"):
        pass_at_k(n, c, k)


def test_table_means_over_problems_and_weighs_benchmarks_alike() -> None:
    table = pass_table({"aime24": [0, 3, 4], "gsm8k": [4, 4]}, samples=4)
    assert table.benchmarks["aime24"][1].value == pytest.approx((0 + 3 / 4 + 1) / 3)
    assert table.benchmarks["aime24"][2].value == pytest.approx((0 + 1 + 1) / 3)
    assert table.mean[1].value == pytest.approx(((0 + 3 / 4 + 1) / 3 + 1) / 2)
    assert sorted(table.mean.by_k) == [1, 2, 3, 4]
    assert (table.mean.problems, table.mean.samples, table.mean.average_ks) == (5, 4, (1,))
    assert [curve.problems for curve in table.benchmarks.values()] == [3, 2]
    assert table.mean.average == table.mean[1]


def test_avg_is_the_mean_of_pass_at_1_8_and_32() -> None:
    curve = pass_table({"aime24": [1, 0, 20, 32]}, samples=32).benchmarks["aime24"]
    assert curve.average is not None
    assert curve.average.value == pytest.approx((curve[1].value + curve[8].value + curve[32].value) / 3)
    assert curve.average.low <= curve.average.value <= curve.average.high


def test_an_interval_does_not_depend_on_the_other_benchmarks() -> None:
    counts = [0, 1, 5, 8, 3, 0, 2, 8]
    alone = pass_table({"a": counts}, samples=8).benchmarks["a"]
    assert pass_table({"b": [1, 2], "a": counts}, samples=8).benchmarks["a"] == alone
    assert pass_table({"a": counts}, samples=8, seed=1).benchmarks["a"] != alone


def test_benchmarks_draw_independently() -> None:
    """Else the interval of their mean would be too wide: it would not be narrower than that of one of them."""
    counts = [*range(17)] * 5
    table = pass_table({"a": counts, "b": counts}, samples=16)
    a, b = (table.benchmarks[name][3] for name in ("a", "b"))
    assert a.value == b.value
    assert (a.low, a.high) != (b.low, b.high)
    assert table.mean[3].high - table.mean[3].low == pytest.approx((a.high - a.low) / np.sqrt(2), rel=0.1)


def test_interval_of_certain_problems_is_a_point() -> None:
    estimate = pass_table({"a": [4, 4, 4]}, samples=4).mean[1]
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1.0, 1.0, 1.0))


def test_interval_width_is_that_of_the_standard_error() -> None:
    counts = [0] * 200 + [1] * 200
    estimate = pass_table({"a": counts}, samples=1).mean[1]
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.15)
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low, rel=0.1), "cut off alike"


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_value_lies_in_its_interval(counts: list[int]) -> None:
    estimate = pass_table({"a": counts}, samples=4, confidence=0.999).mean[2]
    assert estimate.low >= -1e-12
    assert estimate.high <= 1 + 1e-12
    assert estimate.low - 1e-12 <= estimate.value <= estimate.high + 1e-12


def test_bad_tables_are_refused() -> None:
    tables: list[dict[str, list[int]]] = [{}, {"a": []}, {"a": [5]}, {"a": [-1]}]
    for counts in tables:
        with pytest.raises(DataError):
            pass_table(counts, samples=4)
