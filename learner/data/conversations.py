"""Reads a conversation from a row's value: chat messages as OpenAI's, verl's or ShareGPT's data sets write them."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

from services.errors import DataError

Message = dict[str, str]
"""{"role": ..., "content": ...}"""

ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "claude": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
}  # fmt: skip
"""Other names of the roles -> the names that templates know; what is not here stays as it is."""
NONCHARACTERS = "\ufdd0\ufdd1"
"""Unicode keeps them free for programs: `control_tokens` marks places with them."""
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")


def conversation_in(value: Any, where: str) -> list[Message] | None:
    """The messages, or None where the value is no conversation; DataError for a list that has something else in it.

    conversation_in([{"role": "user", "content": "1+1?"}], ...)      as it stands
    conversation_in([{"from": "human", "value": "1+1?"}], ...)       ShareGPT
    conversation_in('[{"role": "user", "content": "1+1?"}]', ...)    the same as JSON text, as CSV files have it
    conversation_in("What is [1, 2]?", ...)                          None
    """
    if isinstance(value, str):
        value = structure_in(value)
        if isinstance(value, dict):
            value = [value] if _key_of(value, ROLE_KEYS) else None
        if not (isinstance(value, list) and value and all(isinstance(one, dict) for one in value)):
            return None
    if not isinstance(value, list):
        return None
    return [_message(one, where) for one in value]


def structure_in(text: str) -> Any:
    """The list or object that a text spells as JSON, or as Python writes it; None for every other text."""
    start = text.lstrip()
    if not start.removeprefix("[").lstrip().startswith("{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):  # ast warns of "\\d"
                found = parse(start)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | dict) else None
    return None


def _message(value: Any, where: str) -> Message:
    role = content = None
    if isinstance(value, dict):
        role, content = (value.get(_key_of(value, keys) or "") for keys in (ROLE_KEYS, CONTENT_KEYS))
    content = _joined_parts(content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}: {value!r:.80} is no chat message",
            hint='a message is {"role": text, "content": text}, or {"from": text, "value": text}; images and calls of '
            "tools are not read",
        )
    role = role.strip().lower()
    return {"role": ROLES.get(role, role), "content": content}


def _joined_parts(content: Any) -> Any:
    """The text of a content that is a list of parts; anything but text stays, and is refused."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if parts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
        return "".join(map(str, texts))
    return content


def _key_of(value: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if value.get(key) is not None), None)


def prompt_and_reply(messages: list[Message], where: str) -> tuple[list[Message], str | None]:
    """What comes before the last reply, and that reply where the conversation ends in one.

    A recorded conversation holds what somebody else answered: the last answer is the reference, the rest the prompt.
    """
    last_user = max((place for place, one in enumerate(messages) if one["role"] == "user"), default=None)
    if last_user is None:
        raise DataError(f"{where} holds no message of a user", hint="drop the row or complete it")
    replies = [one["content"] for one in messages[last_user + 1 :] if one["role"] == "assistant"]
    return messages[: last_user + 1], replies[-1] if replies else None


def check_text(text: str, what: str, where: str) -> None:
    """DataError for characters that no tokenizer takes (halves of surrogate pairs, NUL), and noncharacters of ours."""
    for place, char in enumerate(text):
        if char == "\0" or "\ud800" <= char <= "\udfff" or char in NONCHARACTERS:
            name = "half of a surrogate pair" if "\ud800" <= char <= "\udfff" else "a character that no text has"
            raise DataError(
                f"{where}: {what} holds {name} (U+{ord(char):04X}) at character {place + 1}: "
                f"{text[max(0, place - 20) : place + 20]!a}",
                hint="write the whole character, or drop the row (data.path?bad_rows=leave_out does)",
            )


def field_in(record: Any, column: str) -> Any:
    """The column's value, or that of a field in it: "extra_info.answer"; objects may be JSON text. None when absent."""
    if isinstance(record, dict) and column in record:
        return record[column]
    outer, dot, inner = column.partition(".")
    if not dot or not isinstance(record, dict):
        return None
    value = record.get(outer)
    return field_in(structure_in(value) if isinstance(value, str) else value, inner)
