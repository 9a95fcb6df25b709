"""A version is made of another without touching what others still use, and is that of the manifest or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.contracts import FileKind
from services.errors import DigestError, WeightError
from services.tensors import RawTensor, describe, write_safetensors
from services.weights import delta
from services.weights.chain import apply_change, change_of, patch, verify_tensors
from tests.support.endpoint import open_store
from tests.support.weight_samples import (
    ADAPTED,
    adapted_version,
    base_version,
    bits,
    first_version,
    next_version,
    publish_versions,
    tensor,
)

CHANGED = {"model.embed_tokens.weight", "model.layers.0.norm.weight"}


def test_a_refused_change_leaves_the_parent_whole_for_the_right_one() -> None:
    """The parent's bytes may be shared and writeable: only names in `owned` are changed in place."""
    parent, child = first_version(), next_version(first_version(), 1)
    before = bits(parent)

    def cut_short() -> Iterator[delta.Patch]:
        yield next(delta.decode(parent, delta.encode(parent, next_version(parent, 2))))
        raise WeightError("the rest is damaged")

    with pytest.raises(WeightError, match="damaged"):
        patch(dict(parent), cut_short(), set())
    assert bits(parent) == before
    tensors, owned = dict(parent), set[str]()
    patch(tensors, delta.decode(parent, delta.encode(parent, child)), owned)
    assert bits(tensors) == bits(child)
    assert bits(parent) == before
    assert owned == CHANGED


def test_what_is_owned_is_changed_in_place_and_nothing_is_copied_twice() -> None:
    tensors, owned = dict(first_version()), set[str]()
    versions = [first_version()]
    for seed in (1, 2):
        versions.append(next_version(versions[-1], seed))
    patch(tensors, delta.decode(versions[0], delta.encode(*versions[:2])), owned)
    places = {name: tensors[name].data.ctypes.data for name in owned}
    applied = patch(tensors, delta.decode(versions[1], delta.encode(*versions[1:])), owned)
    assert {change.name for change in applied} == CHANGED
    assert {name: tensors[name].data.ctypes.data for name in owned} == places
    assert bits(tensors) == bits(versions[2])


def test_a_file_is_applied_as_what_it_is(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    before, after = publish_versions(store, 2)
    change = change_of(store.manifest(1))
    assert change.kind is FileKind.DELTA
    tensors = dict(before)
    apply_change(change.kind, store.file_path(1, change.name), tensors, set())
    assert bits(tensors) == bits(after)
    with pytest.raises(WeightError, match="version 0 has neither delta nor adapters"):
        change_of(store.manifest(0))


def test_adapters_make_their_version_of_whatever_is_held_as_long_as_the_base_is_known(tmp_path: Path) -> None:
    """They are of version 0, so a later one can become their version, too."""
    base = base_version()
    after, packed = adapted_version(base, 1)
    later, _ = adapted_version(base, 2)
    path = tmp_path / "adapters.safetensors"
    write_safetensors(path, packed)
    for held, known in ((base, None), (base, base), (later, base)):
        tensors, owned, before = dict(held), set[str](), bits(held)
        applied = apply_change(FileKind.ADAPTERS, path, tensors, owned, known)
        assert bits(tensors) == bits(after)
        assert bits(held) == before, "others may still use it"
        assert {change.name for change in applied} == owned == set(ADAPTED)
    tensors = dict(later)
    apply_change(FileKind.ADAPTERS, path, tensors, set())
    assert bits(tensors) != bits(after), "without the base the held tensors are taken for it"


@pytest.mark.parametrize("name", sorted(first_version()))
def test_every_tensor_is_verified(name: str) -> None:
    entries = describe(first_version())
    verify_tensors(first_version(), entries)
    wrong = first_version()
    wrong[name].data[0] ^= 1
    with pytest.raises(DigestError, match=name):
        verify_tensors(wrong, entries)


def test_names_types_and_shapes_are_verified_too() -> None:
    entries = describe(first_version())
    name = "model.layers.0.norm.weight"
    whole = first_version()
    others: list[dict[str, RawTensor]] = [
        {key: value for key, value in whole.items() if key != name},
        {**whole, "one.more": tensor("F32", (2,))},
        {**whole, name: RawTensor("I32", (16,), whole[name].data)},
        {**whole, name: RawTensor("F32", (4, 4), whole[name].data)},
    ]
    for tensors in others:
        with pytest.raises(WeightError, match=r"1 tensors are missing or not|the manifest says F32 \(16,\)") as refused:
            verify_tensors(tensors, entries)
        assert not isinstance(refused.value, DigestError)
