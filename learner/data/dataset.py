"""Reads questions, each with its reference answer if there is one, from files and the Hugging Face hub.

Training prompts and benchmarks both come from here.

Accepted rows, by their columns:

    prompt = [{role, content}, ...], reward_model = {ground_truth}     verl
    question, answer                                                   GSM8K ("... #### 72") and plain ones
    problem, answer and/or final_answer, solution                      the answer, else what the solution states
    Problem, expected_answer / ground_truth / target                   likewise; capitals do not matter
    prompt, completion                                                 plain text
    messages = [{role, content}, ...]                                  the last reply is the reference answer
    conversations = [{from, value}, ...]                               ShareGPT, likewise
    instruction, input, output                                         Alpaca

A conversation may be JSON text. The answer may be missing: self-training needs none. Other names of columns stand
after the path (`learner.data.readers.source`).
A proof, or a word for a missing answer ("notfound"), is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import structlog

from learner.data.answers import final_answer, is_checkable
from learner.data.conversations import Message, check_text, conversation_in, field_in, prompt_and_reply, structure_in
from learner.data.readers.places import read_rows
from learner.data.readers.rows import Record, Row, in_words
from learner.data.readers.source import Source, parse_source, split_sources
from services.errors import DataError

QUESTION_COLUMNS = (
    "question",
    "problem",
    "prompt",
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "query",
)
ANSWER_COLUMNS = (
    "answer",
    "final_answer",
    "expected_answer",
    "ground_truth",
    "target",
    "solution",
    "completion",
    "response",
    "output",
)
WORKED_COLUMNS = ("solution", "response", "output")
"""Those that hold how the answer is found, too."""
ACCEPTED = (
    "a row has `question`, `problem`, `prompt`, `messages`, `conversations` or `instruction`, and for its answer "
    "`reward_model.ground_truth`, `answer`, `final_answer`, `expected_answer`, `ground_truth`, `target`, `solution`, "
    "`completion`, `response`, `output` or nothing; other names stand after the path: "
    "FILE?question=COLUMN&answer=COLUMN"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a data set."""

    row: int
    """Number of its row in the data set, from 0."""
    messages: tuple[Message, ...]
    """The conversation so far, as {"role", "content"}; the last message is the user's."""
    answer: str | None
    """The reference answer as text, where the row has one."""
    where: str = field(default="", compare=False)
    """"train.jsonl line 7": how an error about it names it."""
    weight: float = field(default=1.0, compare=False)
    """As in `Source`."""

    @property
    def text(self) -> str:
        """The user's question."""
        return self.messages[-1]["content"]


def read_questions(path: str, *, split: str = "train", limit: int | None = None) -> list[Question]:
    """The first `limit` questions of each file, folder or hub data set; DataError when there are none.

    read_questions("train.jsonl")                        also .json, .csv, .parquet ..., .gz and .zst of each
    read_questions("shards/*.parquet")                   several files, in the order of their names
    read_questions("folder/", split="test")              a folder of such files, or what save_to_disk wrote
    read_questions("openai/gsm8k:main", split="test")    a hub id, with :configuration where it has several
    read_questions("a.jsonl + b.jsonl?weight=2")         several data sets; their rows are numbered on

    The first bad row is refused by its file and line, unless the path ends in ?bad_rows=leave_out.
    """
    questions: list[Question] = []
    for named in split_sources(path):
        first = questions[-1].row + 1 if questions else 0
        found = list(islice(iterate_questions(parse_source(named), split), limit))
        if not found:
            raise DataError(f"{named} holds no rows", hint=f"name a data set with prompts: {ACCEPTED}")
        questions += [replace(question, row=first + question.row) for question in found]
    return questions


def iterate_questions(source: Source, split: str) -> Iterator[Question]:
    """The questions one by one."""
    left_out = 0
    for number, row in enumerate(read_rows(source.path, split)):
        try:
            if row.error is not None:
                raise row.error
            question = _question(number, row, source)
        except DataError as error:
            if source.bad_rows == "refuse":
                raise
            left_out += 1
            if left_out == 1:
                log.warning("bad_row_left_out", reason=error.message)
            continue
        yield question
    if left_out:
        log.warning("bad_rows_left_out", path=source.path, rows=left_out)


def _question(number: int, row: Row, source: Source) -> Question:
    messages, reply = _messages(row, source)
    last = messages[-1] if messages else None
    if last is None or last["role"] != "user" or not last["content"].strip():
        raise DataError(f"{row.where} does not end in a user's question", hint="drop the row or complete it")
    for message in messages:
        check_text(message["content"], "the question", row.where)
        check_text(message["role"], "a role", row.where)
    answer = _answer(row, source, reply)
    if answer is not None:
        check_text(answer, "the answer", row.where)
    return Question(number, tuple(messages), answer, row.where, source.weight)


def _messages(row: Row, source: Source) -> tuple[list[Message], str | None]:
    """The prompt's messages, and what a recorded conversation answers to them."""
    columns = (source.question,) if source.question else QUESTION_COLUMNS
    if not source.question and conversation_in(row.record.get("prompt"), row.where) is not None:
        columns = ("prompt",)  # verl's rows may have the bare question, too
    for column in columns:
        value = field_in(row.record, column if source.question else _spelled_in(row.record, column))
        if value is None:
            continue
        conversation = conversation_in(value, row.where)
        if conversation is not None:
            return (conversation, None) if column == "prompt" else prompt_and_reply(conversation, row.where)
        if not isinstance(value, str) or (column in ("messages", "conversations") and not source.question):
            raise DataError(
                f"{row.where}: {column} is {in_words(value)}, {value!r:.80}", hint="a question is text or chat messages"
            )
        if _is_structure(value):
            raise DataError(
                f"{row.where}: {column} is JSON, but no chat messages: {value!r:.80}",
                hint='chat messages are [{"role": text, "content": text}, ...]',
            )
        return [{"role": "user", "content": value + _input_of(row.record, column)}], None
    raise DataError(
        f"{row.where} has no column that holds a question; its columns are {_columns(row.record)}", hint=ACCEPTED
    )


def _is_structure(text: str) -> bool:
    found = structure_in(text)
    return bool(found) and (isinstance(found, dict) or all(isinstance(one, dict) for one in found))


def _input_of(record: Record, column: str) -> str:
    """Alpaca's rows have what the instruction is about in a column of its own."""
    about = record.get("input") if column == "instruction" else None
    return f"\n\n{about}" if isinstance(about, str) and about.strip() else ""


def _answer(row: Row, source: Source, reply: str | None) -> str | None:
    if source.answer:
        text = _text(_with_column(row, source.answer), row.where)
        return final_answer(text) if text else None
    truth = field_in(row.record, "reward_model.ground_truth")
    if isinstance(truth, str):
        found = structure_in(truth)
        truth = found if isinstance(found, dict) and "target" in found else truth
    if isinstance(truth, dict):  # in verl's MATH it also holds the question and the solution
        truth = truth.get("target")
    if truth is not None:
        text = _text(truth, row.where)
        return text if text and is_checkable(text) else None
    for column in ANSWER_COLUMNS:
        text = _text(row.record.get(_spelled_in(row.record, column)), row.where)
        if text:
            return final_answer(text, worked=column in WORKED_COLUMNS)
    return final_answer(reply, worked=True) if reply and reply.strip() else None


def _spelled_in(record: Record, column: str) -> str:
    """How the record spells a column: "Problem" for problem."""
    return column if column in record else next((name for name in record if name.lower() == column), column)


def _with_column(row: Row, column: str) -> Any:
    if column.partition(".")[0] not in row.record and column not in row.record:
        raise DataError(
            f"{row.where} has no column {column!r}, its columns are {_columns(row.record)}",
            hint="name one of them after the path, as answer=COLUMN",
        )
    return field_in(row.record, column)


def _text(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list):
        return ", ".join(filter(None, (_text(one, where) for one in value))) or None
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise DataError(
            f"{where}: the answer {value!r:.80} is {in_words(value)}", hint="an answer is text or a finite number"
        )
    return str(value).strip() or None


def _columns(record: Record) -> str:
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in record.items()) or "none"
