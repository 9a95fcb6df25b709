"""The mirror becomes any published version to the bit, by the cheaper route, and never holds an unverified one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from services.contracts import FileKind, WeightManifest
from services.errors import UnavailableError, VersionNotFoundError, WeightError
from services.tensors import RawTensor, Tensors, digest_file, read_safetensors
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.mirrors import advanced, as_served, shared_copy
from tests.support.weight_samples import adapted_version, base_version, bits, first_version, next_version


@pytest.fixture
async def endpoint(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        yield endpoint


@pytest.fixture
async def client(endpoint: Endpoint) -> AsyncIterator[WeightClient]:
    async with endpoint.weights() as client:
        yield client


@pytest.fixture
def mirror(tmp_path: Path, client: WeightClient) -> Iterator[WeightMirror]:
    with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as mirror:
        yield mirror


def publish(endpoint: Endpoint, count: int) -> list[Tensors]:
    history: list[Tensors] = [first_version()]
    endpoint.store.publish(0, history[0])
    for version in range(1, count):
        history.append(next_version(history[-1], version))
        endpoint.store.publish(version, history[-1])
    return history


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def size_of(manifest: WeightManifest, name: str) -> int:
    return next(entry.size_bytes for entry in manifest.files if entry.name == name)


async def test_a_joiner_starts_from_the_nearest_snapshot(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 7)
    update = await advanced(mirror, endpoint.store.manifest(6))
    assert update.patches is None
    assert bits(update.tensors) == bits(history[6])
    manifests = [endpoint.store.manifest(version) for version in (4, 5, 6)]
    snapshot, first, second = manifests
    expected = size_of(snapshot, "model.safetensors") + size_of(first, "delta.bin") + size_of(second, "delta.bin")
    assert update.fetched_bytes == expected
    assert update.changed == set(history[0])


async def test_one_version_behind_costs_one_delta(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 2)
    await advanced(mirror, endpoint.store.manifest(0))
    update = await advanced(mirror, endpoint.store.manifest(1))
    assert update.fetched_bytes == size_of(endpoint.store.manifest(1), "delta.bin")
    assert bits(as_served(history[0], update)) == bits(history[1])
    assert update.changed == {"model.embed_tokens.weight", "model.layers.0.norm.weight"}


@pytest.mark.parametrize("held", [0, 1, 3, 7, 8, 11])
async def test_any_distance_behind_ends_at_the_same_bits(endpoint: Endpoint, mirror: WeightMirror, held: int) -> None:
    history = publish(endpoint, 12)
    await advanced(mirror, endpoint.store.manifest(held))
    update = await advanced(mirror, endpoint.store.manifest(11))
    assert bits(update.tensors) == bits(as_served(history[held], update)) == bits(history[11])
    assert (mirror.version, mirror.digest) == (11, endpoint.store.manifest(11).digest)


async def test_ten_versions_behind_takes_whichever_costs_fewer_bytes(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 12)
    await advanced(mirror, endpoint.store.manifest(1))
    chain = sum(size_of(endpoint.store.manifest(version), "delta.bin") for version in range(2, 12))
    full = size_of(endpoint.store.manifest(8), "model.safetensors") + sum(
        size_of(endpoint.store.manifest(version), "delta.bin") for version in range(9, 12)
    )
    update = await advanced(mirror, endpoint.store.manifest(11))
    assert update.fetched_bytes == min(chain, full)
    assert bits(update.tensors) == bits(history[11])


@pytest.mark.parametrize(("behind", "by_anchor"), [(1, False), (10, False), (100, True)])
async def test_however_far_behind_it_takes_the_cheapest_way_there_is(
    endpoint: Endpoint, mirror: WeightMirror, behind: int, by_anchor: bool
) -> None:
    newest = 103
    history = publish(endpoint, newest - behind + 1)
    await advanced(mirror, endpoint.store.manifest(newest - behind))
    for version in range(len(history), newest + 1):
        history.append(next_version(history[-1], version))
        endpoint.store.publish(version, history[-1])
    update = await advanced(mirror, endpoint.store.manifest(newest))
    assert bits(update.tensors) == bits(as_served(history[newest - behind], update)) == bits(history[newest])
    assert update.fetched_bytes == min(chain_bytes(endpoint, newest - behind, newest), anchor_bytes(endpoint, newest))
    assert (update.patches is None) is by_anchor


def chain_bytes(endpoint: Endpoint, held: int, newest: int) -> int:
    return sum(size_of(endpoint.store.manifest(version), "delta.bin") for version in range(held + 1, newest + 1))


def anchor_bytes(endpoint: Endpoint, newest: int) -> int:
    """The cheapest of all snapshots with the deltas from there on."""
    manifests = [endpoint.store.manifest(version) for version in endpoint.store.versions()]
    anchors = [manifest for manifest in manifests if manifest.file(FileKind.SNAPSHOT) is not None]
    return min(
        size_of(anchor, "model.safetensors") + chain_bytes(endpoint, anchor.weight_version, newest)
        for anchor in anchors
        if anchor.weight_version > 0  # the versions after 0 are retired
    )


async def test_the_version_held_costs_nothing(endpoint: Endpoint, mirror: WeightMirror) -> None:
    publish(endpoint, 1)
    await advanced(mirror, endpoint.store.manifest(0))
    update = await advanced(mirror, endpoint.store.manifest(0))
    assert (update.patches, update.changed, update.fetched_bytes) == ([], frozenset(), 0)


async def test_a_version_published_anew_is_reached_from_its_old_self(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 3)
    await advanced(mirror, endpoint.store.manifest(2))
    other = next_version(history[1], 77)
    endpoint.store.publish(2, other)
    update = await advanced(mirror, endpoint.store.manifest(2))
    assert update.patches is None, "there is no delta between the two"
    assert bits(update.tensors) == bits(other)


async def test_an_older_version_is_reached_when_the_learner_went_back(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 6)
    await advanced(mirror, endpoint.store.manifest(5))
    endpoint.store.retract_after(2)
    update = await advanced(mirror, endpoint.store.manifest(2))
    assert (bits(update.tensors), mirror.version) == (bits(history[2]), 2)


async def test_a_damaged_delta_makes_way_for_the_snapshot(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 5)
    await advanced(mirror, endpoint.store.manifest(3))
    damage(endpoint.store.file_path(4, "delta.bin"))
    update = await advanced(mirror, endpoint.store.manifest(4))
    assert update.patches is None
    assert bits(update.tensors) == bits(history[4])


async def test_a_copy_that_went_bad_in_memory_is_replaced(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 3)
    await advanced(mirror, endpoint.store.manifest(1))
    copy = shared_copy(mirror)
    copy.tensors(endpoint.store.manifest(1).tensors)["model.embed_tokens.weight"].data[:] ^= 1
    update = await advanced(mirror, endpoint.store.manifest(2))
    assert update.patches is None
    assert bits(update.tensors) == bits(history[2])


async def test_without_any_sound_route_it_fails_and_the_next_version_works(
    endpoint: Endpoint, mirror: WeightMirror
) -> None:
    history = publish(endpoint, 4)
    await advanced(mirror, endpoint.store.manifest(2))
    damage(endpoint.store.file_path(3, "delta.bin"))
    with pytest.raises(WeightError):
        await advanced(mirror, endpoint.store.manifest(3))
    after = next_version(history[3], 4)
    endpoint.store.publish(4, after)
    update = await advanced(mirror, endpoint.store.manifest(4))
    assert bits(update.tensors) == bits(after)


async def test_a_version_that_is_gone_says_so_and_leaves_the_copy(endpoint: Endpoint, mirror: WeightMirror) -> None:
    history = publish(endpoint, 3)
    await advanced(mirror, endpoint.store.manifest(0))
    gone = endpoint.store.manifest(2)
    endpoint.store.publish(1, next_version(history[0], 55))
    with pytest.raises(VersionNotFoundError):
        await advanced(mirror, gone)
    assert mirror.version == 0
    update = await advanced(mirror, endpoint.store.manifest(0))
    assert (bits(update.tensors), update.fetched_bytes) == (bits(history[0]), 0)


async def test_an_endpoint_out_of_reach_leaves_the_copy(endpoint: Endpoint, tmp_path: Path) -> None:
    history = publish(endpoint, 2)
    reachable = True

    async def answer(request: httpx.Request) -> httpx.Response:
        if not reachable:
            raise httpx.ConnectError("no route")
        return await httpx.ASGITransport(endpoint.app).handle_async_request(request)

    transport = httpx.MockTransport(answer)
    async with WeightClient("http://127.0.0.1", deadline_s=0.2, transport=transport) as client:
        mirror = WeightMirror(tmp_path / "mirror", client)
        await advanced(mirror, endpoint.store.manifest(0))
        reachable = False
        with pytest.raises(UnavailableError):
            await advanced(mirror, endpoint.store.manifest(1))
        update = await advanced(mirror, endpoint.store.manifest(0))
        assert bits(update.tensors) == bits(history[0])
        mirror.close()


async def test_the_model_folder_is_what_an_engine_starts_from(
    endpoint: Endpoint, mirror: WeightMirror, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    history: list[Tensors] = [first_version()]
    nested = "additional_chat_templates/tool use.jinja"
    endpoint.store.publish(0, history[0], dict.fromkeys(("config.json", nested), tmp_path / "config.json"))
    history.append(next_version(history[0], 1))
    endpoint.store.publish(1, history[1])
    manifest, folder = await mirror.model_folder(endpoint.store.manifest(1))
    assert manifest == endpoint.store.manifest(1)
    assert (folder / "config.json").read_text() == '{"model_type": "toy"}'
    assert (folder / nested).read_text() == '{"model_type": "toy"}'
    assert bits(read_safetensors(folder / "model.safetensors")) == bits(history[1])


async def test_a_restarted_process_takes_its_model_folder_up_again(
    endpoint: Endpoint, client: WeightClient, mirror: WeightMirror, tmp_path: Path
) -> None:
    history = publish(endpoint, 3)
    with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as before:
        await before.model_folder(endpoint.store.manifest(1))
    update = await advanced(mirror, endpoint.store.manifest(2))
    assert update.fetched_bytes == size_of(endpoint.store.manifest(2), "delta.bin")
    assert bits(update.tensors) == bits(history[2])


async def test_a_damaged_model_folder_is_discarded(
    endpoint: Endpoint, client: WeightClient, mirror: WeightMirror, tmp_path: Path
) -> None:
    history = publish(endpoint, 2)
    with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as before:
        _, folder = await before.model_folder(endpoint.store.manifest(1))
    damage(folder / "model.safetensors")
    update = await advanced(mirror, endpoint.store.manifest(1))
    assert update.patches is None
    assert bits(update.tensors) == bits(history[1])


async def test_a_damaged_config_of_an_earlier_process_is_fetched_again(
    endpoint: Endpoint, client: WeightClient, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "pretend"}')
    endpoint.store.publish(0, first_version(), {"config.json": tmp_path / "config.json"})
    for _ in range(2):
        with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as mirror:
            _, folder = await mirror.model_folder(endpoint.store.manifest(0))
        assert (folder / "config.json").read_text() == '{"model_type": "pretend"}'
        for kept in (tmp_path / "mirror" / "resources").iterdir():
            damage(kept)


async def test_downloads_do_not_pile_up(endpoint: Endpoint, mirror: WeightMirror, tmp_path: Path) -> None:
    publish(endpoint, 6)
    for version in range(6):
        await advanced(mirror, endpoint.store.manifest(version))
    assert list((tmp_path / "mirror" / "fetched").iterdir()) == []


def publish_adapted(endpoint: Endpoint, first: int, last: int) -> Tensors:
    """The newest version that adapters make of version 0, which is published with number 0 only."""
    tensors: Tensors = base_version()
    for version in range(first, last + 1):
        packed = None
        if version:
            tensors, packed = adapted_version(base_version(), version)
        endpoint.store.publish(version, tensors, packed=packed)
    return tensors


ADAPTERS = "adapters.safetensors"


async def test_a_follower_of_adapters_fetches_the_newest_and_nothing_else(
    endpoint: Endpoint, mirror: WeightMirror
) -> None:
    publish_adapted(endpoint, 0, 0)
    await advanced(mirror, endpoint.store.manifest(0))
    served: Mapping[str, RawTensor] = base_version()
    for newest in (1, 2, 5):
        history = publish_adapted(endpoint, newest - 1 if newest == 5 else newest, newest)
        update = await advanced(mirror, endpoint.store.manifest(newest))
        assert update.fetched_bytes == size_of(endpoint.store.manifest(newest), ADAPTERS)
        served = as_served(served, update)
        assert update.patches is not None
        assert bits(update.tensors) == bits(served) == bits(history)


async def test_a_late_joiner_of_adapters_holds_what_a_follower_of_deltas_holds(
    endpoint: Endpoint, mirror: WeightMirror, tmp_path: Path, redis_url: str
) -> None:
    publish_adapted(endpoint, 0, 5)
    update = await advanced(mirror, endpoint.store.manifest(5))
    assert update.patches is None
    sizes = (size_of(endpoint.store.manifest(0), "model.safetensors"), size_of(endpoint.store.manifest(5), ADAPTERS))
    assert update.fetched_bytes == sum(sizes)
    async with open_endpoint(tmp_path / "merged", redis_url) as merged, merged.weights() as client:
        with contextlib.closing(WeightMirror(tmp_path / "follower", client)) as follower:
            for version in range(6):
                tensors = adapted_version(base_version(), version)[0] if version else base_version()
                followed = await advanced(follower, merged.store.publish(version, tensors))
        assert (bits(followed.tensors), follower.digest) == (bits(update.tensors), mirror.digest)
    publish_adapted(endpoint, 6, 6)
    assert (await advanced(mirror, endpoint.store.manifest(6))).fetched_bytes == sizes[1], "the base is kept"


async def test_adapters_are_left_and_come_back_to(endpoint: Endpoint, mirror: WeightMirror, tmp_path: Path) -> None:
    """Back to an earlier version, to the first one, to deltas, and to adapters again in another process."""
    publish_adapted(endpoint, 0, 3)
    await advanced(mirror, endpoint.store.manifest(3))
    for version in (2, 0):
        endpoint.store.retract_after(version)
        update = await advanced(mirror, endpoint.store.manifest(version))
        assert bits(update.tensors) == bits(endpoint.store.load(version))
    publish_adapted(endpoint, 1, 1)
    await advanced(mirror, endpoint.store.manifest(1))
    other = adapted_version(base_version(), 4)[0]
    update = await advanced(mirror, endpoint.store.publish(2, other))
    assert bits(update.tensors) == bits(other)
    assert update.patches is not None
    await mirror.model_folder(endpoint.store.manifest(2))
    newest = publish_adapted(endpoint, 3, 3)
    assert bits((await advanced(mirror, endpoint.store.manifest(3))).tensors) == bits(newest)
    mirror.close()
    async with endpoint.weights() as client:
        with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as restarted:
            assert bits((await advanced(restarted, endpoint.store.manifest(3))).tensors) == bits(newest)


async def test_adapters_that_are_not_those_of_the_manifest_are_refused_by_the_tensors(
    endpoint: Endpoint, mirror: WeightMirror
) -> None:
    """Even with the right digest of the file."""
    publish_adapted(endpoint, 0, 2)
    await advanced(mirror, endpoint.store.manifest(1))
    path = endpoint.store.file_path(2, ADAPTERS)
    damage(path)
    entry = endpoint.store.manifest(2).files[0].model_copy(update={"digest": digest_file(path)})
    wrong = endpoint.store.manifest(2).model_copy(update={"files": (entry,)})
    path.with_name("manifest.json").write_text(wrong.model_dump_json())
    with pytest.raises(WeightError, match="does not have the digest of the manifest"):
        await advanced(mirror, wrong)
    assert shared_copy(mirror).state() is None
    newest = publish_adapted(endpoint, 3, 3)
    update = await advanced(mirror, endpoint.store.manifest(3))
    assert bits(update.tensors) == bits(newest)


async def test_a_base_that_went_bad_is_fetched_anew(endpoint: Endpoint, mirror: WeightMirror) -> None:
    newest = publish_adapted(endpoint, 0, 2)
    await advanced(mirror, endpoint.store.manifest(1))
    (base,) = shared_copy(mirror).folder.glob("base-*")
    content = bytearray(base.read_bytes())
    with_header = int.from_bytes(content[:8], "little") + 8
    content[with_header:] = bytes(byte ^ 1 for byte in content[with_header:])
    base.unlink()  # another name of a file that others have
    base.write_bytes(content)
    update = await advanced(mirror, endpoint.store.manifest(2))
    assert update.patches is None
    assert bits(update.tensors) == bits(newest)
