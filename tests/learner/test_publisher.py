"""Versions leave the learner in order, beside its work, and a failure comes back to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from learner.publisher import Publisher, VersionContents, contents_of_folder
from services.errors import UnavailableError, WeightError
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.tensors import RawTensor, Tensors, write_safetensors
from services.weights.publisher import WeightPublisher
from tests.support.stream_builders import last_events

KEYS = Keys("publisher")


def tensors(value: int) -> Tensors:
    return {"w": RawTensor("F32", (256,), np.full(256, value, dtype=np.float32).view(np.uint8))}


def contents(value: int) -> VersionContents:
    return VersionContents(tensors(value))


@pytest.fixture
def store(tmp_path: Path) -> WeightPublisher:
    return WeightPublisher(tmp_path / "weights", "publisher")


def test_versions_are_stored_and_announced(store: WeightPublisher, redis_url: str) -> None:
    published: list[int] = []
    with connect(redis_url) as client:
        publisher = Publisher(store, EventLog(client, KEYS))
        futures = [publisher.submit(version, contents(version), published.append) for version in range(3)]
        publisher.close()
        assert [future.result().manifest.weight_version for future in futures] == [0, 1, 2]
        assert [event.fields["weight_version"] for event in last_events(client, KEYS)] == [0, 1, 2]
    assert published == store.versions() == [0, 1, 2]
    assert futures[2].result().sync_bytes < futures[0].result().sync_bytes, "a delta is smaller than a snapshot"


def test_versions_can_be_retracted_and_published_anew(store: WeightPublisher, redis_url: str) -> None:
    with connect(redis_url) as client:
        publisher = Publisher(store, EventLog(client, KEYS))
        assert publisher.newest() is None
        before = [publisher.submit(version, contents(version)).result().manifest for version in range(4)]
        publisher.retract_after(1)
        assert (publisher.newest(), store.versions()) == (1, [0, 1])
        again = publisher.submit(2, contents(7)).result().manifest
        assert again.digest != before[2].digest
        assert store.load(2)["w"].data.tobytes() == tensors(7)["w"].data.tobytes()
        publisher.close()


def test_what_cannot_be_published_fails_the_future(store: WeightPublisher, redis_url: str) -> None:
    with connect(redis_url) as client:
        publisher = Publisher(store, EventLog(client, KEYS))
        with pytest.raises(WeightError, match="outside"):
            publisher.submit(-1, contents(0)).result()
        store.folder.parent.joinpath("weights").write_text("a file where the folder should be")
        with pytest.raises(UnavailableError, match="cannot write"):
            publisher.submit(0, contents(0)).result()
        publisher.close()


def test_the_files_that_the_index_names_are_published_and_no_other(tmp_path: Path) -> None:
    named, stray = tensors(1), {"w": tensors(9)["w"], "v": tensors(9)["w"]}
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", named)
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", stray)
    weight_map = {"w": "model-00001-of-00001.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = contents_of_folder(tmp_path).tensors
    assert {name: tensor.data.tobytes() for name, tensor in found.items()} == {"w": named["w"].data.tobytes()}
