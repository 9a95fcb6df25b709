"""The generators of a host share one copy, which one of them changes at a time, whoever of them dies or stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.tensors import RawTensor, Tensors
from services.weights import host_copies
from services.weights import mirror as mirrors
from services.weights.chain import verify_tensors
from services.weights.client import WeightClient
from services.weights.host_copy import KEPT_STEPS, HostCopy, is_in_use
from services.weights.mirror import WeightMirror, WeightUpdate
from services.weights.publisher import WeightPublisher
from tests.support.endpoint import open_store
from tests.support.mirror_process import COPIES, store_client
from tests.support.mirrors import advanced, as_served, shared_copy
from tests.support.weight_samples import (
    adapted_version,
    base_version,
    bits,
    first_version,
    next_version,
    publish_versions,
)

PATIENCE_S = 120


@pytest.fixture
async def client(store: WeightPublisher) -> AsyncIterator[WeightClient]:
    async with store_client(store.folder) as client:
        yield client


class Host:
    """Mirrors by number that share the copies in one folder."""

    def __init__(self, folder: Path, client: WeightClient) -> None:
        self.folder = folder
        self._client = client
        self.mirrors: dict[int, WeightMirror] = {}

    def __getitem__(self, number: int) -> WeightMirror:
        if number not in self.mirrors:
            folder = self.folder / f"mirror-{number}"
            self.mirrors[number] = WeightMirror(folder, self._client, copies=self.folder / COPIES)
        return self.mirrors[number]

    def end(self, number: int) -> None:
        self.mirrors.pop(number).close()

    def copies(self) -> list[Path]:
        """Folders of all copies."""
        return [path.parent for path in self.folder.glob(f"{COPIES}/*/*/*/places")]


@pytest.fixture
def host(tmp_path: Path, client: WeightClient) -> Iterator[Host]:
    host = Host(tmp_path / "host", client)
    yield host
    for number in list(host.mirrors):
        host.end(number)


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions that copies were changed to."""
    found = []
    carry_out = mirrors._carry_out

    def noted(plan: Any, *rest: Any) -> None:
        found.append(plan.target.weight_version)
        carry_out(plan, *rest)

    monkeypatch.setattr(mirrors, "_carry_out", noted)
    return found


async def test_a_version_is_decoded_once_and_held_once_for_all_generators(
    store: WeightPublisher, host: Host, changes: list[int]
) -> None:
    history = publish_versions(store, 3)
    for version in range(3):
        updates = await asyncio.gather(*(advanced(host[at], store.manifest(version)) for at in range(5)))
        for update in updates:
            assert bits(update.tensors) == bits(history[version])
            if version:
                assert update.patches is not None
                assert bits(as_served(history[version - 1], update)) == bits(history[version])
        assert sum(update.fetched_bytes > 0 for update in updates) == 1
    assert changes == [0, 1, 2]
    assert {os.fstat(shared_copy(host[at])._handle).st_ino for at in range(5)} == {
        os.fstat(shared_copy(host[0])._handle).st_ino
    }


async def test_a_generator_a_few_versions_behind_gets_patches_and_one_far_behind_everything(
    store: WeightPublisher, host: Host, changes: list[int]
) -> None:
    history = publish_versions(store, KEPT_STEPS + 2)
    for at in range(2):
        await advanced(host[at], store.manifest(at))
    for version in range(2, KEPT_STEPS + 2):
        await advanced(host[9], store.manifest(version))
    newest = store.manifest(KEPT_STEPS + 1)
    far, near = await advanced(host[0], newest), await advanced(host[1], newest)
    assert (far.patches, near.patches is not None) == (None, True)
    assert bits(as_served(history[1], near)) == bits(as_served(history[0], far)) == bits(history[-1])
    assert changes == list(range(KEPT_STEPS + 2))


async def test_an_older_version_is_not_gone_back_to_unless_the_learner_went_back(
    store: WeightPublisher, host: Host, changes: list[int]
) -> None:
    history = publish_versions(store, 4)
    stale = store.manifest(2)
    await advanced(host[0], store.manifest(3))
    update = await advanced(host[1], stale)
    assert (update.manifest, bits(update.tensors)) == (store.manifest(3), bits(history[3]))
    assert changes == [3]
    store.retract_after(2)
    update = await advanced(host[1], stale)
    assert (update.manifest, bits(update.tensors)) == (stale, bits(history[2]))
    assert host[1].version == 2


async def test_any_generator_of_the_host_merges_the_next_adapters(store: WeightPublisher, host: Host) -> None:
    store.publish(0, base_version())
    served: dict[int, Mapping[str, RawTensor]] = {}
    for version in range(5):
        tensors: Tensors = base_version()
        if version:
            tensors, packed = adapted_version(base_version(), version)
            store.publish(version, tensors, packed=packed)
        for at in (version % 3, 0, 1, 2):  # another one comes first each time
            update = await advanced(host[at], store.manifest(version))
            served[at] = as_served(served.get(at, {}), update)
            assert bits(served[at]) == bits(tensors)
            if version:
                assert update.patches is not None


async def test_a_renewed_copy_is_another_one_and_all_go_on_with_it(store: WeightPublisher, host: Host) -> None:
    history = publish_versions(store, 3)
    for at in range(3):
        await advanced(host[at], store.manifest(1))
    old = shared_copy(host[0])
    old.tensors(store.manifest(1).tensors)["model.layers.0.mlp.weight"].data[:] ^= 1  # which no delta touches
    async with host[1].renew(store.manifest(1)) as update:
        assert update.patches is None
        assert bits(update.tensors) == bits(history[1])
    for at in range(3):
        assert bits((await advanced(host[at], store.manifest(2))).tensors) == bits(history[2])
    assert [folder.name for folder in host.copies()] == [shared_copy(host[0]).name] != [old.name]


async def test_a_copy_of_another_size_is_another_memory(store: WeightPublisher, host: Host) -> None:
    publish_versions(store, 1)
    for at in range(2):
        await advanced(host[at], store.manifest(0))
    larger = {**first_version(), "extra": first_version()["model.layers.0.mlp.weight"]}
    store.publish(1, larger)
    for at in range(2):
        assert bits((await advanced(host[at], store.manifest(1))).tensors) == bits(larger)
    assert len(host.copies()) == 1


async def test_runs_in_one_folder_have_nothing_to_do_with_each_other(tmp_path: Path, store: WeightPublisher) -> None:
    publish_versions(store, 1)
    other = open_store(tmp_path / "other", "other")
    other.publish(0, first_version(7))
    found = []
    async with store_client(store.folder) as first, store_client(other.folder, "other") as second:
        for name, client, of in (("a", first, store), ("b", second, other)):
            mirror = WeightMirror(tmp_path / name, client, copies=tmp_path / COPIES)
            found.append((mirror, await advanced(mirror, of.manifest(0))))
    assert [bits(update.tensors) for _, update in found] == [bits(first_version()), bits(first_version(7))]
    for mirror, _ in found:
        mirror.close()


async def test_nothing_is_left_by_generators_that_leave(store: WeightPublisher, host: Host) -> None:
    publish_versions(store, 1)
    for at in range(2):
        await advanced(host[at], store.manifest(0))
    assert [path.stat().st_mode & 0o777 for path in [host.folder / COPIES]] == [0o700]
    host.end(0)
    assert len(host.copies()) == 1
    host.end(1)
    assert host.copies() == []


async def test_who_renews_alone_has_a_newer_copy_each_time(store: WeightPublisher, host: Host) -> None:
    publish_versions(store, 1)
    names = []
    for _ in range(20):
        async with host[0].renew(store.manifest(0)):
            names.append(shared_copy(host[0]).name)
    assert names == sorted(set(names))
    assert [folder.name for folder in host.copies()] == names[-1:]


# Deaths


class Killed(BaseException):
    """Stands for SIGKILL: nothing behind it runs but what the kernel does."""


POINTS: dict[str, tuple[object, str]] = {
    "before the bytes change": (HostCopy, "forget"),
    "after some have changed": (mirrors, "verify_tensors"),
    "before the step is written": (HostCopy, "add_step"),
    "before the state is written": (HostCopy, "remember"),
    "after the copy was made": (HostCopy, "fill"),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("version", [0, 1])
async def test_a_generator_that_dies_while_it_changes_the_copy_costs_one_snapshot(
    store: WeightPublisher, host: Host, monkeypatch: pytest.MonkeyPatch, point: str, version: int
) -> None:
    history = publish_versions(store, 3)
    await kill(host, 0, store, version, monkeypatch, point)
    for at in (1, 2):
        assert bits((await advanced(host[at], store.manifest(version))).tensors) == bits(history[version])
    for at in (1, 2):
        update = await advanced(host[at], store.manifest(2))
        assert bits(as_served(history[version], update)) == bits(history[2])


async def kill(
    host: Host, number: int, store: WeightPublisher, version: int, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A second mirror holds the copy at the version before, as the first one is killed at that point, if it comes."""
    if version:
        await advanced(host[1], store.manifest(version - 1))

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(*POINTS[point], die)
        await advanced(host[number], store.manifest(version))
    host.end(number)


async def test_a_cancelled_change_ends_before_another_one_begins(
    store: WeightPublisher, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = publish_versions(store, 2)
    await advanced(host[0], store.manifest(0))
    changing, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> None:
        changing.set()
        assert go_on.wait(PATIENCE_S)
        verify_tensors(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(mirrors, "verify_tensors", slow)
        cancelled = asyncio.create_task(advanced(host[0], store.manifest(1)))
        assert await asyncio.to_thread(changing.wait, PATIENCE_S)
        for _ in range(3):
            cancelled.cancel()
            await asyncio.sleep(0)
        await advanced_by_another_is_refused(host)
        assert not cancelled.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    update = await advanced(host[1], store.manifest(1))
    assert bits(update.tensors) == bits(history[1])


async def advanced_by_another_is_refused(host: Host) -> None:
    others = await host[1]._open("run")
    copy = others.newest()
    assert copy is not None
    assert not copy.try_lock(shared=True)
    assert not others.try_turn()


class Generator:
    """A mirror in a process of its own (`tests.support.mirror_process`)."""

    def __init__(self, host: Host, store: WeightPublisher, name: str, point: str, *versions: int) -> None:
        host.folder.mkdir(exist_ok=True)
        arguments = [str(store.folder), str(host.folder / name), point, *map(str, versions)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mirror_process", *arguments], stdout=subprocess.PIPE, text=True
        )

    async def stopped(self) -> None:
        """Wait until it has stopped itself."""
        _, status = await asyncio.to_thread(os.waitpid, self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it ended before the point where it stops"

    async def result(self) -> dict[str, Any]:
        output, _ = await asyncio.to_thread(self.process.communicate, timeout=PATIENCE_S)
        assert self.process.returncode == 0
        found: dict[str, Any] = json.loads(output)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def start(host: Host, store: WeightPublisher) -> Iterator[Callable[..., Generator]]:
    started: list[Generator] = []

    def start(name: str, point: str, *versions: int) -> Generator:
        started.append(Generator(host, store, name, point, *versions))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


async def test_processes_that_advance_at_once_serve_the_right_bytes_and_share_the_work(
    store: WeightPublisher, start: Callable[..., Generator]
) -> None:
    publish_versions(store, 13)
    paths = [random.Random(seed).sample(range(12), 6) for seed in range(3)]
    generators = [start(f"g{at}", "none", *sorted(path), 12) for at, path in enumerate(paths)]
    results = [await each.result() for each in generators]
    assert len({result["copy"] for result in results}) == 1
    assert 0 < sum(result["changes"] for result in results) <= len({*paths[0], *paths[1], *paths[2], 12})


async def test_a_process_that_is_killed_while_it_changes_the_copy_frees_it(
    store: WeightPublisher, host: Host, start: Callable[..., Generator]
) -> None:
    history = publish_versions(store, 3)
    await advanced(host[0], store.manifest(0))
    killed = start("killed", "changed", 0, 1)
    await killed.stopped()
    name = shared_copy(host[0]).name
    killed.kill()
    for version in (1, 2):
        assert bits((await advanced(host[0], store.manifest(version))).tensors) == bits(history[version])
    assert shared_copy(host[0]).name == name


@pytest.mark.parametrize("point", ["held", "changed"])
async def test_a_process_that_is_stopped_with_a_lock_does_not_stop_the_others(
    store: WeightPublisher,
    host: Host,
    start: Callable[..., Generator],
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    """It keeps the old copy, has the right bytes when it goes on, and nobody has lost any."""
    history = publish_versions(store, 3)
    served = {at: first_version() for at in range(2)}
    for at in served:
        await advanced(host[at], store.manifest(0))
    stopped = start("stopped", point, 0, 1)
    await stopped.stopped()
    old = shared_copy(host[0]).name
    monkeypatch.setattr(host_copies, "GRACE_S", 0.0)
    updates = await asyncio.gather(*(advanced(host[at], store.manifest(2)) for at in served))
    for at, update in enumerate(updates):
        assert bits(as_served(served[at], update)) == bits(update.tensors) == bits(history[2])
    assert shared_copy(host[0]).name == shared_copy(host[1]).name != old
    stopped.process.send_signal(signal.SIGCONT)
    assert (await stopped.result())["copy"] == shared_copy(host[0]).name, "it shares the newer one again"
    assert [folder.name for folder in host.copies() if is_in_use(folder)] == [shared_copy(host[0]).name]


# Anything


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_every_generator_serves_exactly_the_version_that_it_was_given(
    store: WeightPublisher, host: Host, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    by_adapters = seed % 3 == 0
    history: list[Tensors] = [base_version()]
    store.publish(0, history[0])
    served: dict[int, dict[str, RawTensor]] = {}

    def publish() -> None:
        version = len(history)
        tensors, packed = adapted_version(base_version(), draw.randrange(10**6))
        if not by_adapters or draw.random() < 0.2:
            tensors, packed = next_version(history[-1], draw.randrange(10**6)), {}
        history.append(tensors)
        store.publish(version, tensors, packed=packed or None)

    def take(number: int, update: WeightUpdate) -> None:
        served[number] = as_served(served.get(number, {}), update)
        assert bits(served[number]) == bits(update.tensors) == bits(history[update.manifest.weight_version])

    async def advance(number: int) -> None:
        take(number, await advanced(host[number], store.manifest(len(history) - 1)))

    async def advance_together(_: int) -> None:
        await asyncio.gather(*(advance(number) for number in range(4)))

    async def go_back(_: int) -> None:
        keep = draw.randrange(len(history))
        store.retract_after(keep)
        del history[keep + 1 :]

    async def publish_anew(_: int) -> None:
        if len(history) > 1:
            store.retract_after(len(history) - 2)
            history.pop()
            publish()

    async def die(number: int) -> None:
        served.pop(number, None)

        def killed(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(*POINTS[draw.choice(list(POINTS))], killed)
            await advanced(host[number], store.manifest(len(history) - 1))
        host.end(number)

    async def start_again(number: int) -> None:
        _, folder = await host[number].model_folder(store.manifest(len(history) - 1))
        host.end(number)
        served.pop(number, None)
        if draw.random() < 0.3:
            (folder / "model.safetensors").write_bytes(b"damaged")

    async def renew(number: int) -> None:
        async with host[number].renew(store.manifest(len(history) - 1)) as update:
            assert update.patches is None
            take(number, update)

    async def lose_files(number: int) -> None:
        files = [
            path for copy in host.copies() for path in copy.rglob("*") if path.is_file() and "places" not in path.parts
        ]
        if files:
            draw.choice(sorted(files)).unlink()

    operations = (advance, advance_together, go_back, publish_anew, die, start_again, renew, lose_files)
    for _ in range(40):
        if draw.random() < 0.5:
            publish()
        await draw.choice(operations)(draw.randrange(4))
    await advance_together(0)
    assert len({shared_copy(host[number]).name for number in range(4)}) == 1
