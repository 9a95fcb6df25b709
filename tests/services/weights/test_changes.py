"""How a version is sent: by what makes it of a version that is there, in the form that is smaller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.contracts import FileKind
from services.tensors import Tensors, describe, encoded_bytes
from services.weights import delta
from services.weights.chain import patch
from services.weights.changes import Change, ChangeChooser, Held
from services.weights.publisher import WeightPublisher
from services.weights.reader import DELTA_NAME
from tests.support.weight_samples import (
    adapted_version,
    base_version,
    bits,
    first_version,
    next_version,
    publish_versions,
    tensor,
)


def choice(
    store: WeightPublisher,
    version: int,
    tensors: Tensors,
    packed: Tensors | None = None,
    held: Held | None = None,
) -> Change | None:
    return ChangeChooser(store).choose(version, describe(tensors), tensors, packed, held)


def made_of(parent: Tensors, change: Change) -> Tensors:
    """The version that the delta makes."""
    assert isinstance(change.content, bytes)
    made = dict(parent)
    patch(made, delta.decode(parent, change.content), set())
    return made


def test_a_delta_is_to_the_version_right_before(store: WeightPublisher) -> None:
    history = publish_versions(store, 3)
    after = next_version(history[2], 9)
    change = choice(store, 3, after)
    assert change is not None
    assert (change.kind, change.parent) == (FileKind.DELTA, store.manifest(2))
    assert bits(made_of(history[2], change)) == bits(after)
    assert isinstance(change.content, bytes)
    assert change.size_bytes == len(change.content)
    assert choice(store, 5, after) is None, "version 4 is not there"


def test_tensors_in_memory_are_compared_with_only_where_they_are_the_parents(store: WeightPublisher) -> None:
    """Those of another version would make a delta that makes nothing."""
    history = publish_versions(store, 3)
    after = next_version(history[2], 9)
    for held in ((store.manifest(1), history[1]), (store.manifest(2), history[2])):
        change = choice(store, 3, after, held=held)
        assert change is not None
        assert bits(made_of(history[2], change)) == bits(after)
    (store.folder_of(2) / DELTA_NAME).unlink()
    assert choice(store, 3, after, held=(store.manifest(2), history[2])) is not None, "no file of it is read"


@pytest.mark.parametrize("other", ["name", "type", "shape", "one more"])
def test_tensors_of_another_layout_have_no_delta(other: str, store: WeightPublisher) -> None:
    name = "model.layers.0.norm.weight"
    before = first_version()
    store.publish(0, before)
    after: dict[str, tuple[str, tuple[int, ...]]] = {
        "name": ("F32", (16,)),
        "type": ("I32", (16,)),
        "shape": ("F32", (4, 4)),
        "one more": ("F32", (16,)),
    }
    changed = {key: value for key, value in before.items() if key != name or other == "one more"}
    changed["another" if other in ("name", "one more") else name] = tensor(*after[other])
    assert choice(store, 1, changed) is None


def test_what_would_not_be_smaller_than_the_whole_has_no_delta(store: WeightPublisher) -> None:
    store.publish(0, first_version(0))
    assert choice(store, 1, first_version(100)) is None


def test_adapters_are_of_version_0_and_counted_as_they_are_sent(store: WeightPublisher) -> None:
    base = base_version()
    store.publish(0, base)
    store.publish(1, next_version(base, 1))
    after, packed = adapted_version(base, 1)
    change = choice(store, 3, after, packed)  # no delta: version 2 is not there
    assert change is not None
    assert (change.kind, change.parent, change.content) == (FileKind.ADAPTERS, store.manifest(0), packed)
    assert change.size_bytes == encoded_bytes(packed)
    assert choice(store, 3, after) is None


def test_adapters_that_do_not_make_the_version_to_the_bit_are_not_sent(store: WeightPublisher) -> None:
    base = base_version()
    store.publish(0, base)
    after, packed = adapted_version(base, 1)
    for name in ("model.embed_tokens.weight", "model.layers.0.norm.weight"):  # one adapted, one frozen
        data = after[name].data.copy()
        data[np.array([3])] ^= 1
        assert choice(store, 3, {**after, name: replace(after[name], data=data)}, packed) is None
    assert choice(store, 3, after, packed) is not None
