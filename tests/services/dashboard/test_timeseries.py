"""A growing file becomes columns: read once, joined without losing a spike."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.contracts import EvaluationMetrics
from services.dashboard.timeseries import TimeSeries
from tests.support.recorded_run import metrics


def write(path: Path, *lines: dict[str, Any], end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines)[:-1] + end)


def test_what_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    window = TimeSeries(tmp_path / "missing").window("round")
    assert (window.lines, window.columns) == (0, {})


def test_lines_are_taken_in_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"round": 0, "loss": 1.0, "name": "x", "done": True})
    columns = TimeSeries(path)
    columns.refresh()
    write(path, {"round": 1, "loss": 0.5}, {"round": 2, "lo"[:1]: 0}, end="")
    columns.refresh()
    assert columns.lines == 2
    window = columns.window("round")
    assert window.columns["round"].mean == [0, 1]
    assert window.columns["loss"].mean == [1.0, 0.5]
    assert set(window.columns) == {"round", "loss"}


def test_a_field_that_comes_later_is_unknown_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"round": 0}, {"round": 1, "pass_at_1": 0.5}, {"round": 2, "pass_at_1": math.nan})
    assert TimeSeries(path).window("round").columns["pass_at_1"].mean == [None, 0.5, None]


def test_what_evaluations_measured_has_columns_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    measured = EvaluationMetrics(
        weight_version=2, temperature=0.6, samples=4, pass_at_k={"sums": {1: 0.25, 4: 0.5}, "mean": {1: 0.25}}
    )
    path.write_text(
        "".join(f"{one.as_line()}\n" for one in (metrics(0), metrics(1, evaluations=(measured,)), metrics(2)))
    )
    window = TimeSeries(path).window("round")
    assert window.columns["pass@1 sums, 0.6"].mean == [None, 0.25, None]
    assert window.columns["pass@4 sums, 0.6"].mean == [None, 0.5, None]
    assert window.newest["pass@1 mean, 0.6"] == 0.25


def test_evaluations_of_another_release_leave_the_line_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"round": 0, "evaluations": [{"accuracy": 1}]}, {"round": 1, "evaluations": "none"})
    assert TimeSeries(path).window("round").columns.keys() == {"round"}


def test_the_ends_and_the_newest_number_are_exact_where_lines_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *({"round": number, "loss": float(number)} for number in range(10)))
    window = TimeSeries(path).window("round", buckets=4)
    assert window.per_bucket == 4
    assert window.columns["loss"].mean == [0.0, 2.5, 6.5, 9.0]
    assert (window.columns["loss"].low, window.columns["loss"].high) == ([0, 1, 5, 9], [0, 4, 8, 9])
    assert window.newest == {"round": 9.0, "loss": 9.0}


@given(st.integers(1, 200), st.integers(1, 60), st.integers(3, 40))
def test_a_caller_that_holds_the_complete_buckets_gets_the_rest(before: int, more: int, buckets: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, *({"round": number, "loss": number * 1.5} for number in range(before)))
        series = TimeSeries(path)
        held = series.window("round", buckets=buckets)
        write(path, *({"round": number, "loss": number * 1.5} for number in range(before, before + more)))
        rest = series.window("round", buckets=buckets, mark=held.mark, have=held.complete)
        whole = series.window("round", buckets=buckets)
    assert len(whole.columns["loss"].mean) <= buckets
    assert rest.first_bucket == (held.complete if rest.mark == held.mark else 0)
    for name, band in whole.columns.items():
        kept = held.columns[name].mean[: rest.first_bucket]
        assert kept + rest.columns[name].mean == band.mean


def test_little_travels_of_a_long_run_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{metrics(number).as_line()}\n" for number in range(5000)))
    series = TimeSeries(path)
    held = series.window("round")
    with path.open("a") as file:
        file.write(f"{metrics(5000).as_line()}\n")
    rest = series.window("round", mark=held.mark, have=held.complete)
    assert len(rest.model_dump_json()) < len(held.model_dump_json()) / 30
    assert len(rest.model_dump_json()) < 10_000


def test_tokens_are_summed_up_to_each_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rounds = [{"round": number, "prompt_tokens": 1, "response_tokens": 10} for number in range(3)]
    write(path, *rounds, {"round": 3})
    columns = TimeSeries(path)
    assert columns.window("round").columns["tokens"].mean == [11, 22, 33, None]
    assert columns.greatest("tokens") == 33
    assert columns.greatest("nothing") is None


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n{"rou\n[1]\n\n{"round": 3}\n')
    assert TimeSeries(path).window("round").columns["round"].mean == [0, 3]


def test_many_pages_at_once_read_every_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *({"round": number} for number in range(20_000)))
    columns = TimeSeries(path)
    with ThreadPoolExecutor(8) as pages:
        windows = list(pages.map(lambda _: columns.window("round", buckets=20_000), range(8)))
    assert {window.lines for window in windows} == {20_000}
    assert windows[-1].columns["round"].mean == list(range(20_000))


def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"round": 0}, {"round": 1})
    columns = TimeSeries(path)
    columns.refresh()
    before = columns.generation
    shorter = tmp_path / "shorter"
    write(shorter, {"round": 0})
    shorter.replace(path)
    columns.refresh()
    assert columns.window("round").columns["round"].mean == [0]
    assert columns.generation > before


def test_a_window_is_a_stretch_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *({"round": number} for number in range(100)))
    window = TimeSeries(path).window("round", low=10, high=12)
    assert window.columns["round"].mean == [10, 11, 12]
    assert (window.lines, window.per_bucket) == (100, 1)


def test_times_keep_their_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "queue.jsonl"
    write(path, {"time": 1790000000.125}, {"time": 1790000010.25})
    assert TimeSeries(path).window("time").columns["time"].mean == [1790000000.125, 1790000010.25]


@given(values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=200), buckets=st.integers(3, 50))
def test_joined_lines_keep_mean_least_and_greatest(tmp_path_factory: Any, values: list[int], buckets: int) -> None:
    path = tmp_path_factory.mktemp("columns") / "metrics.jsonl"
    write(path, *({"round": number, "loss": value} for number, value in enumerate(values)))
    window = TimeSeries(path).window("round", buckets=buckets)
    loss, size = window.columns["loss"], window.per_bucket
    assert len(loss.mean) <= buckets
    middle = values[1:-1]
    groups = [values[:1], *(middle[at : at + size] for at in range(0, len(middle), size)), values[1:][-1:]]
    groups = [group for group in groups if group]
    assert (loss.low or loss.mean) == [min(group) for group in groups]
    assert (loss.high or loss.mean) == [max(group) for group in groups]
    assert all(
        math.isclose(mean or 0, sum(group) / len(group), rel_tol=1e-4, abs_tol=1e-4)
        for mean, group in zip(loss.mean, groups, strict=True)
    )
