"""Conversations are read in every form that people write them in, and other texts stay texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from learner.data.conversations import (
    ROLES,
    check_text,
    conversation_in,
    field_in,
    prompt_and_reply,
    structure_in,
)
from services.errors import DataError

ASKED = [{"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    "value",
    [
        ASKED,
        [{"from": "human", "value": "1+1?"}],
        [{"role": " User ", "content": "1+1?"}],
        [{"role": "user", "text": "1+1?"}],
        [{"role": "user", "content": None, "value": "1+1?"}],
        [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
    ],
)
def test_a_conversation_is_the_same_however_it_is_written(value: Any) -> None:
    assert conversation_in(value, "here") == ASKED
    check_texts_of(value)


def test_a_single_message_is_a_conversation_as_text() -> None:
    check_texts_of(ASKED[0])


def check_texts_of(value: Any) -> None:
    for text in (
        json.dumps(value),
        f"\n {json.dumps(value, indent=2)}",
        json.dumps(value, indent=2).replace("\n", "\r\n"),
        json.dumps(value, indent="\t").replace("\n", ""),
        repr(value),
    ):
        assert conversation_in(text, "here") == ASKED, text


@pytest.mark.parametrize(
    "value",
    [
        "What is [1, 2]?",
        "[1, 2]",
        "{1, 2}",
        "[",
        "[{",
        "{}",
        '{"steps": 3}',
        "[]",
        "",
        "x" * 9,
        5,
        None,
        {"role": "user"},
    ],
)
def test_what_is_no_conversation_is_none(value: Any) -> None:
    assert conversation_in(value, "here") is None


@pytest.mark.parametrize(
    "message",
    [
        "1+1?",
        {"role": "user"},
        {"role": 3, "content": "1+1?"},
        {"role": "user", "content": 3},
        {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "image"}]},
        {"role": "user", "content": [{"type": "text", "text": 1}]},
    ],
)
def test_a_list_with_something_else_in_it_is_refused_with_what_it_is(message: Any) -> None:
    with pytest.raises(DataError, match=r"^row 3: .* is no chat message"):
        conversation_in([*ASKED, message], "row 3")


@pytest.mark.parametrize("name", ROLES)
def test_other_names_of_roles_are_known(name: str) -> None:
    found = conversation_in([{"from": name.upper(), "value": "x"}], "here")
    assert found == [{"role": ROLES[name], "content": "x"}]


def test_the_last_answer_is_the_reference_and_what_follows_a_question_is_not_asked() -> None:
    system, first, reply, second = (
        {"role": role, "content": str(number)} for number, role in enumerate(("system", "user", "assistant", "user"))
    )
    tool, last = {"role": "tool", "content": "t"}, {"role": "assistant", "content": "last"}
    assert prompt_and_reply([system, first], "here") == ([system, first], None)
    assert prompt_and_reply([system, first, reply], "here") == ([system, first], "2")
    assert prompt_and_reply([first, reply, second], "here") == ([first, reply, second], None)
    assert prompt_and_reply([first, reply, second, reply, tool, last], "here") == ([first, reply, second], "last")
    with pytest.raises(DataError, match="row 3 holds no message of a user"):
        prompt_and_reply([system, reply], "row 3")


@pytest.mark.parametrize(
    ("char", "says"),
    [
        ("\0", r"a character that no text has \(U\+0000\) at character 3"),
        ("\ud800", r"half of a surrogate pair \(U\+D800\) at character 3"),
        ("\udfff", r"half of a surrogate pair \(U\+DFFF\) at character 3"),
        ("\ufdd0", r"a character that no text has \(U\+FDD0\) at character 3"),
        ("\ufdd1", r"a character that no text has \(U\+FDD1\) at character 3"),
    ],
)
def test_characters_that_no_tokenizer_takes_are_refused_with_their_place(char: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"^row 3: question holds {says}"):
        check_text(f"ab{char}cd", "question", "row 3")


@pytest.mark.parametrize("text", ["", "\ud7ff\ue000", "\ufdcf\ufdd2", "\x01", "𝄞"])
def test_every_other_character_is_text(text: str) -> None:
    check_text(text, "question", "row 3")
    with pytest.raises(DataError, match=f"at character {len(text) + 1}:"):
        check_text(f"{text}\0", "question", "row 3")


@pytest.mark.parametrize(
    ("record", "column", "found"),
    [
        ({"a": 1}, "a", 1),
        ({"a": {"b": {"c": 2}}}, "a.b.c", 2),
        ({"a": '{"b": 3}'}, "a.b", 3),
        ({"a": "{'b': 3}"}, "a.b", 3),
        ({"a.b": 4, "a": {"b": 5}}, "a.b", 4),
        ({"a": {"b.c": 6}}, "a.b.c", 6),
        ({"a": {}}, "a.b", None),
        ({"a": "b"}, "a.b", None),
        ({"a": 1}, "b", None),
        ([1], "0", None),
    ],
)
def test_a_column_may_name_a_field_of_an_object(record: Any, column: str, found: Any) -> None:
    assert field_in(record, column) == found


def test_a_structure_is_an_object_or_a_list_of_objects() -> None:
    assert structure_in(' {"a": [1]}') == {"a": [1]}
    assert structure_in("[{'a': True}]") == [{"a": True}]
    assert structure_in("{1, 2}") is None
    assert structure_in("{" * 100_000) is None
