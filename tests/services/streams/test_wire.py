"""Tasks and rollouts as bytes: what goes in comes out, and what is wrong is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.contracts import MAX_TOKENS, Rollout, Task, VersionSpan
from services.errors import ContractError
from services.streams.wire import (
    MAX_META_BYTES,
    claimed_task_id,
    decode_rollout,
    decode_task,
    encode_rollout,
    encode_task,
)
from tests.support.stream_builders import make_rollouts, make_task

TASK = encode_task(make_task(0))
ROLLOUT = encode_rollout(make_rollouts(make_task(0))[0])

token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(prompt=token_ids, temperature=st.floats(0, 1e6), samples=st.integers(1, 1024), stops=st.lists(st.integers()))
def test_a_task_comes_back_as_it_was(prompt: list[int], temperature: float, samples: int, stops: list[int]) -> None:
    task = make_task(3, prompt_tokens=prompt, temperature=temperature, samples=samples, stop_token_ids=tuple(stops))
    assert decode_task(encode_task(task)) == task


@given(prompt=token_ids, response=token_ids.filter(bool), cut=st.integers(0, 40))
def test_a_rollout_comes_back_as_it_was(prompt: list[int], response: list[int], cut: int) -> None:
    ends = sorted({min(cut, len(response)), len(response)} - {0})
    spans = tuple(
        VersionSpan(weight_version=version, start=start, end=end)
        for version, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    [made] = make_rollouts(make_task(0, prompt_tokens=prompt))
    rollout = Rollout.model_validate({**dict(made), "response_tokens": response, "spans": spans})
    assert decode_rollout(encode_rollout(rollout)) == rollout


def test_token_ids_travel_as_raw_little_endian_integers() -> None:
    assert encode_task(make_task(258))[b"prompt"] == bytes([2, 1, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0])
    assert b"prompt_tokens" not in TASK[b"meta"]


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from([b"meta", b"prompt", b"response"]) | st.binary(max_size=6), st.binary(max_size=80))
)
def test_random_fields_are_refused_and_nothing_else_happens(fields: dict[bytes, bytes]) -> None:
    for decode in (decode_task, decode_rollout):
        with pytest.raises(ContractError):
            decode(fields)
    assert isinstance(claimed_task_id(fields), str)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(Task.model_fields)), value=json_values)
@example(name="temperature", value=float("inf"))
@example(name="temperature", value="inf")
@example(name="prompt_tokens", value=[1])
@example(name="schema_version", value=2)
@example(name="round", value=10**400)
def test_a_changed_field_is_taken_or_refused_but_never_crashes(name: str, value: object) -> None:
    meta = json.dumps({**json.loads(TASK[b"meta"]), name: value}).encode()
    fields = {**TASK, b"meta": meta}
    try:
        task = decode_task(fields)
    except ContractError as error:
        assert len(error.message) < 2000
    else:
        assert decode_task(encode_task(task)) == task
    assert isinstance(claimed_task_id(fields), str)


@settings(max_examples=300)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), key=st.sampled_from(sorted(ROLLOUT)))
def test_a_flipped_byte_is_taken_or_refused_but_never_crashes(at: int, byte: int, key: bytes) -> None:
    value = bytearray(ROLLOUT[key])
    value[at % len(value)] = byte
    try:
        rollout = decode_rollout({**ROLLOUT, key: bytes(value)})
    except ContractError as error:
        assert error.message
    else:
        assert isinstance(rollout, Rollout)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({b"meta": b"[" * 100_000}, "not JSON"),
        ({b"meta": b'{"temperature": NaN}'}, "not JSON"),
        ({b"meta": b"\xff"}, "not JSON"),
        ({b"meta": b'{"task_id": "\\ud800"}'}, "not JSON"),
        ({b"meta": b"[]"}, "an object"),
        ({b"meta": b'{"prompt_tokens": [1]}'}, "without token ids"),
        ({b"meta": TASK[b"meta"].replace(b'"temperature":0.6', b'"temperature":1e999')}, "temperature is inf"),
        ({b"meta": TASK[b"meta"].replace(b'"schema_version":1', b'"schema_version":2')}, "schema_version"),
        ({b"meta": b" " * (MAX_META_BYTES + 1)}, "limit"),
        ({b"prompt": b"123"}, "multiple of 4"),
        ({b"prompt": b"\xff\xff\xff\xff"}, "negative"),
        ({b"prompt": bytes(4 * MAX_TOKENS + 4)}, "more than 1048576 tokens"),
        ({b"extra": b""}, "has fields extra, meta, prompt"),
    ],
)
def test_the_reason_of_a_refusal_says_what_is_wrong(changes: dict[bytes, bytes], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        decode_task({**TASK, **changes})


def test_a_rollout_whose_spans_leave_a_gap_is_refused() -> None:
    meta = ROLLOUT[b"meta"].replace(b'"start":2', b'"start":1')
    with pytest.raises(ContractError, match="spans must cover"):
        decode_rollout({**ROLLOUT, b"meta": meta})


@pytest.mark.parametrize("entry", [TASK, ROLLOUT])
def test_an_entry_that_was_damaged_is_refused_wherever_it_was(entry: dict[bytes, bytes]) -> None:
    """Also where what is left would be another valid one."""
    decode: Any = decode_task if entry is TASK else decode_rollout
    decode(entry)
    for field, content in entry.items():
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1
            with pytest.raises(ContractError):
                decode({**entry, field: bytes(damaged)})
