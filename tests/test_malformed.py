"""Hundreds of malformed inputs at every door: each is refused by an error of ours, at once, and changes nothing.

Every input is a good one with a fault drawn from a seed, so that it gets past the first check. A fault that happens to
leave the input as good as it was does not count: then what is accepted must be exactly what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.load_settings import load
from learner.data.dataset import read_questions
from services.contracts import Task
from services.errors import SeptError
from services.streams.wire import decode_rollout, decode_task, encode_rollout, encode_task
from services.tensors import digest_bytes, read_safetensors
from services.weights import delta
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader
from tests.support.answering import rollout_of
from tests.support.mirrors import advanced
from tests.support.weight_samples import bits, first_version, next_version

SEEDS = range(40)
AT_ONCE_S = 5.0
STRANGE: list[Any] = [None, -1, 2**70, 1e400, float("nan"), "", "\x00", "../../etc", [], {}, True, [[[]]], "9" * 300]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes cut, doubled or put in: one to three times."""
    result = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(result) or 1)
        match draw.randrange(5):
            case 0 if result:
                result[place] ^= 1 << draw.randrange(8)
            case 1:
                del result[place:]
            case 2:
                result[place:place] = draw.randbytes(draw.randint(1, 9))
            case 3:
                result[place : place + 8] = draw.choice([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f"])
            case _:
                result += result[place : place + 64]
    return bytes(result)


def falsified(document: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One field, however deep, replaced, removed or added."""
    result: dict[str, Any] = json.loads(json.dumps(document))
    node: Any = result
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7:
            node = node[key]
            continue
        match draw.randrange(4):
            case 0 if isinstance(node, dict):
                del node[key]
            case 1 if isinstance(node, dict):
                node["surprise"] = draw.choice(STRANGE)
            case _:
                node[key] = draw.choice(STRANGE)
        return result


def refused(call: Callable[[], object], accepted: Callable[[object], bool]) -> None:
    """Either one of our errors or the truth; nothing else, and soon."""
    started = time.monotonic()
    try:
        result = call()
    except SeptError as error:
        assert error.message
    else:
        assert accepted(result), f"an accepted lie: {result!r:.300}"
    assert time.monotonic() - started < AT_ONCE_S


def a_task() -> Task:
    return Task(
        task_id="r000003-00001",
        round=3,
        position=1,
        prompt_tokens=[1, 2, 3, 4],
        temperature=0.6,
        max_response_tokens=16,
        stop_token_ids=(2,),
        samples=2,
        min_weight_version=2,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["task", "rollout"])
def test_messages(kind: str, seed: int) -> None:
    """A message carries no checksum: one that still keeps the contract is a message, and decodes to what it says."""
    draw = random.Random(seed)
    message: Any = a_task() if kind == "task" else rollout_of(a_task())
    encode: Any = encode_task if kind == "task" else encode_rollout
    decode: Any = decode_task if kind == "task" else decode_rollout
    fields = encode(message)
    name = draw.choice(list(fields))
    broken = {**fields, name: damaged(fields[name], draw)}
    refused(lambda: decode(broken), lambda got: decode(encode(got)) == got)
    false = {**fields, b"meta": json.dumps(falsified(json.loads(fields[b"meta"]), draw)).encode()}
    refused(lambda: decode(false), lambda got: decode(encode(got)) == got)
    refused(lambda: decode({**fields, b"surprise": b""}), lambda got: False)
    assert decode(fields) == message


@pytest.mark.parametrize("seed", SEEDS)
def test_manifests(seed: int, tmp_path: Path) -> None:
    """What an endpoint serves is built into a mirror's copy only when it is what the learner published."""
    draw = random.Random(seed)
    child = next_version(first_version(), 1)
    store = WeightPublisher(tmp_path / "store", "run")
    first, truth = store.publish(0, first_version()), store.publish(1, child)
    false = json.dumps(falsified(json.loads(truth.model_dump_json()), draw)).encode()

    def serve(request: httpx.Request) -> httpx.Response:
        version, _, name = request.url.path.removeprefix("/v1/weights/").partition("/files/")
        if not name:
            manifest = false if version == "1" else first.model_dump_json().encode()
            return httpx.Response(200, stream=httpx.ByteStream(manifest))
        path = store.folder / f"{int(version):08d}" / name
        return (
            httpx.Response(200, stream=httpx.ByteStream(path.read_bytes())) if path.is_file() else httpx.Response(404)
        )

    async def pull() -> dict[str, Any]:
        async with WeightClient("http://far", deadline_s=0.1, transport=httpx.MockTransport(serve)) as client:
            (tmp_path / "mirror").mkdir()
            with contextlib.closing(WeightMirror(tmp_path / "mirror", client)) as mirror:
                await advanced(mirror, first)
                return bits((await advanced(mirror, await client.manifest(1))).tensors)

    refused(lambda: asyncio.run(pull()), lambda pulled: pulled == bits(child))


@pytest.mark.parametrize("seed", SEEDS)
def test_deltas(seed: int) -> None:
    draw = random.Random(seed)
    parent = first_version()
    child = next_version(parent, 1)
    data = delta.encode(parent, child)
    refused(lambda: list(delta.decode(parent, damaged(data, draw))), lambda patches: True)  # digests decide, below
    refused(lambda: list(delta.decode(child, data[: draw.randrange(len(data))])), lambda patches: False)


@pytest.mark.parametrize("seed", SEEDS)
def test_weight_files(seed: int, tmp_path: Path) -> None:
    """Snapshot and delta of a store that rots: never loaded as if they were whole."""
    draw = random.Random(seed)
    store = WeightPublisher(tmp_path / "store", "run")
    child = next_version(first_version(), 1)
    store.publish(0, first_version())
    store.publish(1, child)
    path = store.file_path(*draw.choice([(0, "model.safetensors"), (1, "delta.bin")]))
    path.write_bytes(damaged(path.read_bytes(), draw))
    reader = WeightReader(store.folder, "run")
    refused(lambda: bits(reader.load(1)), lambda loaded: loaded == bits(child))
    snapshot = tmp_path / "alone.safetensors"
    snapshot.write_bytes(damaged((store.folder / "00000000" / "model.safetensors").read_bytes(), draw))
    refused(lambda: [digest_bytes(t.data) for t in read_safetensors(snapshot).values()], lambda digests: True)


@pytest.mark.parametrize("seed", SEEDS)
def test_settings(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / "run.toml"
    good = Path("deploy/config/demo.toml").read_bytes()
    path.write_bytes(damaged(good, draw))
    refused(lambda: load(path, []), lambda settings: True)
    path.write_bytes(good)
    section, key = draw.choice([("training", "rounds"), ("services", "port"), ("redis", "lease_s"), ("run", "seed")])
    wrong = draw.choice(["-5", "nan", "1e999", "[]", "{}", "'", "true!", "\x00", "99999999999999999999999"])
    refused(lambda: load(path, [f"{section}.{key}={wrong}"]), lambda settings: wrong.isdigit() and key != "port")
    refused(lambda: load(path, [f"{section}.surprise=1"]), lambda settings: False)


@pytest.mark.parametrize("seed", SEEDS)
def test_data_files(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / f"prompts.{draw.choice(['jsonl', 'json'])}"
    rows = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(5)]
    good = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(damaged(good.encode(), draw))
    refused(lambda: read_questions(str(path)), lambda problems: True)
