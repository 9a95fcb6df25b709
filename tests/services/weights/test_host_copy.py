"""What is written down of a copy is what its memory holds, or it is not believed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.contracts import WeightManifest
from services.tensors import Tensors
from services.weights.delta import Patch
from services.weights.host_copies import HostCopies
from services.weights.host_copy import KEPT_STEPS, CopyState, HostCopy, size_of
from tests.support.vllm_models import manifest_of
from tests.support.weight_samples import bits, first_version

NAME, SIZE = "model.embed_tokens.weight", 64 * 16


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[HostCopy]:
    copies = HostCopies(tmp_path / "copies", "run")
    with contextlib.closing(copies):
        copy = copies.create(size_of(first_version()))
        copy.fill(first_version())
        yield copy


def manifest(version: int, tensors: Tensors | None = None) -> WeightManifest:
    return manifest_of(version, tensors or first_version()).model_copy(update={"digest": f"{version:064x}"})


def changed(copy: HostCopy, state: CopyState, version: int, positions: list[int]) -> CopyState:
    patch = Patch(NAME, np.array(positions, np.int64), np.zeros(len(positions), "<u2"))
    step = copy.add_step(state.manifest.digest, [patch], first_version())
    after = CopyState(manifest=manifest(version), steps=(*state.steps, step))
    copy.remember(after)
    found = copy.state()
    assert found is not None
    return found


def test_every_handle_on_the_memory_sees_the_same_tensors(copy: HostCopy, tmp_path: Path) -> None:
    with contextlib.closing(HostCopies(tmp_path / "copies", "run")) as others:
        other = others.newest()
        assert other is not None
        assert other is not copy
        views = other.tensors(manifest(0).tensors)
        assert bits(views) == bits(first_version())
        copy.tensors(manifest(0).tensors)[NAME].data[3] ^= 1
        assert views[NAME].data[3] == first_version()[NAME].data[3] ^ 1


@pytest.mark.parametrize("positions", [[5], list(range(100)), list(range(SIZE)), []])
def test_few_and_many_positions_come_back(copy: HostCopy, positions: list[int]) -> None:
    state = changed(copy, CopyState(manifest=manifest(0)), 1, positions)
    found = copy.positions_since(manifest(0).digest, state)
    assert found is not None
    assert found[NAME].tolist() == positions
    (file,) = (copy.folder / "steps").iterdir()
    assert file.stat().st_size < 200 + SIZE // 8


def test_positions_of_several_steps_are_joined_and_those_before_the_kept_ones_are_unknown(copy: HostCopy) -> None:
    state = CopyState(manifest=manifest(0))
    for version in range(1, KEPT_STEPS + 2):
        state = changed(copy, state, version, [0, version])
    newest = KEPT_STEPS + 1
    for before in range(newest + 1):
        found = copy.positions_since(manifest(before).digest, state)
        if before in (0, newest):
            assert found is None
        else:
            assert found is not None
            assert found[NAME].tolist() == [0, *range(before + 1, newest + 1)]
    assert len(list((copy.folder / "steps").iterdir())) == KEPT_STEPS


@pytest.mark.parametrize("damage", ["missing", "other bytes"])
def test_a_damaged_step_is_not_believed(copy: HostCopy, damage: str) -> None:
    state = changed(copy, CopyState(manifest=manifest(0)), 1, [1, 2])
    (file,) = (copy.folder / "steps").iterdir()
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert copy.positions_since(manifest(0).digest, state) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100])
def test_a_damaged_state_counts_as_none(copy: HostCopy, content: bytes) -> None:
    copy.remember(CopyState(manifest=manifest(0)))
    (copy.folder / "state.json").write_bytes(content)
    assert copy.state() is None


def test_locks_count_between_handles_of_one_process(copy: HostCopy, tmp_path: Path) -> None:
    copy.unlock()
    with contextlib.closing(HostCopies(tmp_path / "copies", "run")) as others:
        other = others.newest()
        assert other is not None
        assert copy.try_lock(shared=True)
        assert other.try_lock(shared=True)
        assert not copy.try_lock(shared=False)
        other.unlock()
        assert copy.try_lock(shared=False)
        assert not other.try_lock(shared=True)
