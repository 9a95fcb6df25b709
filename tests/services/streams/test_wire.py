"""Tasks and rollouts as bytes: what goes in comes out, and what is wrong is refused with a reason."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.contracts import MAX_TOKENS, TOKEN_DTYPE, Rollout, Task, VersionSpan
from services.errors import ContractError
from services.streams.wire import (
    AHEAD_S,
    MAX_META_BYTES,
    claimed_task_id,
    decode_rollout,
    decode_task,
    encode_rollout,
    encode_task,
    entered_at,
    is_of_the_future,
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


@pytest.mark.parametrize("field", ["temperature", "queued_s", "generate_s"])
def test_no_number_of_a_rollout_may_be_infinite(field: str) -> None:
    meta = json.loads(ROLLOUT[b"meta"])
    text = json.dumps({**meta, field: 12345.5}).replace("12345.5", "1e999")
    with pytest.raises(ContractError) as refused:
        decode_rollout({**ROLLOUT, b"meta": text.encode()})
    assert refused.value.message == f"rollout is malformed: {field} is inf"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"meta": TASK[b"meta"].replace(b"0.6", b"1e999")}, "task is malformed: temperature is inf"),
        ({b"meta": b"3"}, "task meta must be an object without token ids, got int"),
        ({b"a": b"", b"\xff" * 40: b""}, f"task entry has fields a, meta, prompt, {'�' * 32}, expected meta, prompt"),
        (
            {bytes([n]): b"" for n in range(97, 107)},
            "task entry has fields a, b, c, d, e, f, g, h, expected meta, prompt",
        ),
        (
            {b"meta": TASK[b"meta"].replace(b'"samples":1', b'"samples":0')},
            "task is malformed: samples: Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_refusal_names_the_kind_the_place_and_the_value(changes: dict[bytes, bytes], message: str) -> None:
    with pytest.raises(ContractError) as refused:
        decode_task({**TASK, **changes})
    assert refused.value.message == message
    with pytest.raises(ContractError, match="task entry has fields none, expected"):
        decode_task({})


def test_what_is_exactly_at_a_limit_is_taken() -> None:
    longest = make_task(0, prompt_tokens=[0] * MAX_TOKENS)
    assert decode_task(encode_task(longest)).prompt_tokens.size == MAX_TOKENS
    padded = TASK[b"meta"] + b" " * (MAX_META_BYTES - len(TASK[b"meta"]))
    with pytest.raises(ContractError, match="its checksum is another"):
        decode_task({**TASK, b"meta": padded})


def test_the_time_of_an_entry_is_in_its_id() -> None:
    assert entered_at(b"1700000000123-7") == 1700000000.123


def test_an_id_far_ahead_of_the_clock_was_not_drawn_by_a_server() -> None:
    """Clocks of hosts differ: one that is a little ahead is no reason for doubt."""
    now_s = time.time()
    for ahead_s, of_the_future in ((-1e6, False), (0, False), (AHEAD_S - 3600, False), (AHEAD_S + 3600, True)):
        assert is_of_the_future(b"%d-0" % ((now_s + ahead_s) * 1000)) is of_the_future


@pytest.mark.parametrize(
    ("name", "decode", "entry"), [("task", decode_task, TASK), ("rollout", decode_rollout, ROLLOUT)]
)
def test_a_damaged_entry_is_named_by_its_kind(name: str, decode: Any, entry: dict[bytes, bytes]) -> None:
    other = np.array([5, 6], TOKEN_DTYPE).tobytes()
    with pytest.raises(ContractError) as refused:
        decode({**entry, b"prompt": other})
    assert refused.value.message == f"{name} entry is not what was written: its checksum is another"


def test_a_fault_deep_inside_is_named_by_its_path_and_one_of_the_whole_by_that() -> None:
    meta = json.loads(ROLLOUT[b"meta"])
    meta["spans"][0]["start"] = "first"
    with pytest.raises(ContractError, match=r"rollout is malformed: spans\.0\.start: Input should be"):
        decode_rollout({**ROLLOUT, b"meta": json.dumps(meta).encode()})
    with pytest.raises(ContractError, match="rollout is malformed: as a whole: Value error, a rollout has at least"):
        decode_rollout({**ROLLOUT, b"response": b""})


@pytest.mark.parametrize(
    ("meta", "claimed"),
    [
        (b'{"task_id": "r000001-00002", "x": []}', "r000001-00002"),
        (json.dumps({"task_id": "i" * 128}).encode(), "i" * 128),
        (json.dumps({"task_id": "i" * 129}).encode(), ""),
        (b'{"task_id": 3}', ""),
        (b'{"id": "a"}', ""),
        (b'["task_id"]', ""),
        (b"{", ""),
    ],
)
def test_an_unreadable_entry_claims_an_id_that_is_short_text(meta: bytes, claimed: str) -> None:
    assert claimed_task_id({b"meta": meta, b"noise": b""}) == claimed
    assert claimed_task_id({}) == ""
