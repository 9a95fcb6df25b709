"""The next version is made of the newest one's bytes, in this process or in one of its own, and is the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from services.contracts import WeightManifest
from services.errors import UnavailableError, WeightError
from services.tensors import Tensors, describe, read_safetensors
from services.weights import delta
from services.weights.delta import plain
from services.weights.encoding import EncoderProcess, Job, Made, VersionEncoder, prefers_small
from services.weights.publisher import WeightPublisher
from services.weights.reader import DELTA_NAME, SNAPSHOT_NAME
from tests.support.endpoint import open_store
from tests.support.weight_samples import bits, first_version, flips_between, next_version

GIB = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> WeightPublisher:
    store = open_store(tmp_path / "weights")
    store.publish(0, first_version())
    return store


def job(folder: Path, parent: WeightManifest, old: Tensors, new: Tensors, **wants: bool) -> Job:
    folder.mkdir()
    (folder / DELTA_NAME).write_bytes(plain.encode(plain.layout_of(old), flips_between(old, new)))
    return Job(parent, folder, **({"small": False, "snapshot": False} | wants))


@pytest.mark.parametrize("small", [False, True])
def test_a_process_of_its_own_makes_what_this_one_makes(store: WeightPublisher, tmp_path: Path, small: bool) -> None:
    old = first_version()
    new = next_version(old, 1)
    made: list[Made] = []
    for name, encoder in (
        ("here", VersionEncoder(store.folder, store.run_id)),
        ("there", EncoderProcess(store.folder, store.run_id)),
    ):
        made.append(encoder.make(job(tmp_path / name, store.manifest(0), old, new, small=small, snapshot=True)))
        encoder.close()
        assert bits(read_safetensors(tmp_path / name / SNAPSHOT_NAME)) == bits(new)
    assert made[0].entries == made[1].entries == describe(new)
    deltas = [(tmp_path / name / DELTA_NAME).read_bytes() for name in ("here", "there")]
    assert deltas[0] == deltas[1]
    assert deltas[0].startswith(plain.MAGIC) is not small
    if small:
        assert deltas[0] == delta.encode(old, new)


def test_a_job_that_is_done_again_is_not_applied_twice(store: WeightPublisher, tmp_path: Path) -> None:
    old = first_version()
    new = next_version(old, 1)
    encoder = VersionEncoder(store.folder, store.run_id)
    first = encoder.make(job(tmp_path / "first", store.manifest(0), old, new))
    again = encoder.make(job(tmp_path / "again", store.manifest(0), old, new))
    assert first.entries == again.entries == describe(new)


def test_after_an_error_the_parent_is_read_from_its_files(store: WeightPublisher, tmp_path: Path) -> None:
    old = first_version()
    new = next_version(old, 1)
    encoder = VersionEncoder(store.folder, store.run_id)
    encoder.hold(store.manifest(0), old)
    damaged = job(tmp_path / "damaged", store.manifest(0), old, new)
    (damaged.staged / DELTA_NAME).write_bytes((damaged.staged / DELTA_NAME).read_bytes()[:40])
    with pytest.raises(WeightError):
        encoder.make(damaged)
    assert encoder.make(job(tmp_path / "again", store.manifest(0), old, new)).entries == describe(new)


def test_what_is_held_is_never_changed_in_place(store: WeightPublisher, tmp_path: Path) -> None:
    old = first_version()
    before = bits(old)
    encoder = VersionEncoder(store.folder, store.run_id)
    encoder.hold(store.manifest(0), old)
    encoder.make(job(tmp_path / "job", store.manifest(0), old, next_version(old, 1)))
    assert bits(old) == before


def test_an_encoder_that_was_killed_is_named_and_the_next_job_starts_another(
    store: WeightPublisher, tmp_path: Path
) -> None:
    old = first_version()
    new = next_version(old, 1)
    encoder = EncoderProcess(store.folder, store.run_id)
    encoder.make(job(tmp_path / "first", store.manifest(0), old, new))
    assert encoder.pid is not None
    os.kill(encoder.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="code -9"):
        encoder.make(job(tmp_path / "second", store.manifest(0), old, new))
    assert encoder.make(job(tmp_path / "third", store.manifest(0), old, new)).entries == describe(new)
    encoder.close()


def test_an_error_of_the_work_comes_back_from_the_process(store: WeightPublisher, tmp_path: Path) -> None:
    broken = job(tmp_path / "broken", store.manifest(0), first_version(), next_version(first_version(), 1))
    (broken.staged / DELTA_NAME).write_bytes(plain.MAGIC)
    encoder = EncoderProcess(store.folder, store.run_id)
    with pytest.raises(WeightError, match="too early"):
        encoder.make(broken)
    encoder.close()


@pytest.mark.parametrize(
    ("full_bytes", "line", "small"),
    [
        (GIB // 4, 1e9, True),  # quick enough to save bytes whatever the line
        (3 * GIB, 1e9, False),
        (3 * GIB, None, False),  # nobody is far away
        (3 * GIB, 1e5, True),  # 5 MB would take 50 s
    ],
)
def test_the_measured_line_decides_between_the_codings(full_bytes: int, line: float | None, small: bool) -> None:
    assert prefers_small(5_000_000, full_bytes, line) is small


def test_entries_are_digested_only_where_bytes_changed(store: WeightPublisher, tmp_path: Path) -> None:
    old = first_version()
    new = next_version(old, 1)
    made = VersionEncoder(store.folder, store.run_id).make(job(tmp_path / "job", store.manifest(0), old, new))
    changed = [a.name for a, b in zip(made.entries, store.manifest(0).tensors, strict=True) if a != b]
    assert changed == [name for name in sorted(new) if not np.array_equal(old[name].data, new[name].data)]
