import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import structlog.testing

from learner.data.dataset import Question, read_questions
from services.errors import DataError

SHARED = Path(os.environ.get("SEPT_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
"""Public data sets; tests that read them are skipped without them."""


def jsonl(folder: Path, *rows: Any) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(file)


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def only(folder: Path, row: dict[str, Any]) -> Question:
    (question,) = read_questions(jsonl(folder, row))
    return question


def test_verl_conversation_and_ground_truth(tmp_path: Path) -> None:
    row = {
        "prompt": chat(("system", "Be brief."), ("user", "1+1?")),
        "reward_model": {"ground_truth": "2", "style": "rule"},
    }
    question = only(tmp_path, row)
    assert question.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
    assert (question.text, question.answer) == ("1+1?", "2")


def test_a_verl_ground_truth_that_is_a_mapping_holds_the_answer_as_target(tmp_path: Path) -> None:
    truth = {"question": "1+1?", "solution": r"\boxed{2}", "target": "2"}
    assert only(tmp_path, {"prompt": chat(("user", "1+1?")), "reward_model": {"ground_truth": truth}}).answer == "2"


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"question": "How many?", "answer": "36*2 = <<36*2=72>>72\n#### 72"}, "How many?", "72"),
        ({"question": "How many?", "answer": "72"}, "How many?", "72"),
        ({"problem": "Find x.", "answer": "3"}, "Find x.", "3"),
        ({"Problem": "Find x.", "Answer": "3", "Solution": "long"}, "Find x.", "3"),
        ({"problem": "Find x.", "generated_solution": "long", "expected_answer": "3"}, "Find x.", "3"),
        ({"question": "Find x.", "solution": r"\boxed{4}", "ground_truth": "3"}, "Find x.", "3"),
        ({"query": "Find x.", "target": 3}, "Find x.", "3"),
        ({"problem": "Find x.", "answer": 3}, "Find x.", "3"),
        ({"problem": "Find x.", "solution": r"First \boxed{1}, then \boxed{\frac{1}{2}}."}, "Find x.", r"\frac{1}{2}"),
        ({"problem": "Find x.", "solution": "long", "answer": "4"}, "Find x.", "4"),
        ({"question": "Find x.", "solution": ["long"], "final_answer": ["$5$"]}, "Find x.", "$5$"),
        ({"question": "Find x.", "final_answer": ["1", "2"]}, "Find x.", "1, 2"),
        ({"instruction": "Add.", "input": "1+1", "output": "2"}, "Add.\n\n1+1", "2"),
        ({"instruction": "Add 1+1.", "input": "", "output": "2"}, "Add 1+1.", "2"),
        ({"messages": chat(("user", "1+1?"), ("assistant", r"So \boxed{2}."))}, "1+1?", "2"),
        ({"messages": chat(("user", "1+1?"), ("assistant", "2")), "answer": "3"}, "1+1?", "3"),
        ({"messages": chat(("user", "Hi"), ("assistant", "Hi"), ("user", "1+1?"))}, "1+1?", None),
        ({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]}, "1+1?", "2"),
        ({"prompt": json.dumps(chat(("user", "1+1?"))), "reward_model": '{"ground_truth": "2"}'}, "1+1?", "2"),
        ({"prompt": str(chat(("user", "1+1?"))), "answer": "2"}, "1+1?", "2"),
        ({"question": "What is {1, 2}?", "answer": "a set"}, "What is {1, 2}?", "a set"),
        ({"question": None, "problem": "1+1?", "answer": "2"}, "1+1?", "2"),
        ({"problem": "Find x.", "solution": r"\boxed{5}", "answer": None}, "Find x.", "5"),
        ({"prompt": "47+85=", "completion": "231"}, "47+85=", "231"),
        ({"prompt": "Write a poem."}, "Write a poem.", None),
        ({"question": "Why?", "answer": None}, "Why?", None),
        ({"problem": "Show it.", "answer": "proof"}, "Show it.", None),
        ({"problem": "Find x.", "answer": "notfound", "solution": r"\boxed{3}"}, "Find x.", None),
        ({"problem": "Prove it.", "solution": "Suppose it is p/q. Then p is even."}, "Prove it.", None),
        ({"question": "a?", "solution": ["long"], "final_answer": ["$5$"]}, "a?", "$5$"),
        ({"prompt": "a?", "reward_model": {"ground_truth": "notfound"}}, "a?", None),
    ],
)
def test_columns_of_common_data_sets_are_recognised(
    tmp_path: Path, row: dict[str, Any], question: str, answer: str | None
) -> None:
    found = only(tmp_path, row)
    assert (found.text, found.answer) == (question, answer)


def test_every_file_type_gives_the_same_questions(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(5)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from_jsonl = read_questions(jsonl(tmp_path, *rows))
    assert [question.row for question in from_jsonl] == [0, 1, 2, 3, 4]
    assert read_questions(str(tmp_path / "rows.json")) == from_jsonl
    assert read_questions(str(tmp_path / "rows.parquet")) == from_jsonl
    assert read_questions(str(tmp_path / "rows.parquet"), limit=2) == from_jsonl[:2]


def test_a_folder_is_read_by_the_datasets_library(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "1+1?", "answer": "2"}]), folder / "test.parquet"
    )
    assert read_questions(str(folder), split="test")[0].answer == "2"
    with pytest.raises(DataError, match="'train'"):
        read_questions(str(folder), split="train")


def broken_parquet(folder: Path) -> str:
    (folder / "bad.parquet").write_bytes(b"PAR1 but not really")
    return str(folder / "bad.parquet")


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: "", "no prompts are named"),
        (lambda folder: str(folder / "none.jsonl"), "does not exist"),
        (lambda folder: str(folder / "none" / "deeper" / "set"), "neither a file nor a folder"),
        (lambda folder: written(folder, "rows.xlsx", b"a,b"), r"suffix '\.xlsx'"),
        (lambda folder: written(folder, "empty.jsonl", b"\n"), "no rows"),
        (lambda folder: written(folder, "cut.jsonl", b'{"question": "a"}\n{"quest'), "line 2 is not JSON"),
        (lambda folder: written(folder, "latin.jsonl", b'{"question": "\xe9"}'), "cannot be read"),
        (lambda folder: written(folder, "dict.json", b'{"question": "a"}'), "holds an object"),
        (lambda folder: written(folder, "list.jsonl", b"[1, 2]"), "line 1 is a list"),
        (broken_parquet, "not a readable parquet"),
        (lambda folder: jsonl(folder, {"text": "a", "n": 1}), r"columns are text \(str\), n \(int\)"),
        (
            lambda folder: jsonl(folder, {"question": "a"}, {"question": " "}),
            "line 2 does not end in a user",
        ),
        (lambda folder: jsonl(folder, {"prompt": chat(("user", "a"), ("assistant", "b"))}), "user's question"),
        (lambda folder: jsonl(folder, {"prompt": [{"role": "user", "content": ["a"]}]}), "no chat message"),
        (lambda folder: jsonl(folder, {"prompt": '[{"text": "a"}]'}), "no chat message"),
        (lambda folder: jsonl(folder, {"prompt": '{"steps": 3}'}), "is JSON, but no chat messages"),
        (lambda folder: jsonl(folder, {"messages": "1+1?"}), "messages is text"),
        (lambda folder: jsonl(folder, {"messages": chat(("assistant", "2"))}), "no message of a user"),
        (lambda folder: jsonl(folder, {"question": 5}), "question is a number"),
        (lambda folder: jsonl(folder, {"question": "a \ud83d b"}), r"line 1: .*surrogate pair \(U\+D83D\) at char.* 3"),
        (lambda folder: jsonl(folder, {"question": "a\0"}), r"U\+0000"),
        (lambda folder: jsonl(folder, {"question": "a", "answer": "\ude00"}), "the answer holds half of a surrogate"),
        (lambda folder: jsonl(folder, {"question": "a", "answer": math.inf}), "the answer inf"),
        (lambda folder: jsonl(folder, {"question": "a"}) + "?answer=Antwort", "no column 'Antwort'"),
        (lambda folder: jsonl(folder, {"question": "a"}) + "?antwort=a", "antwort=a .* is not an option"),
        (lambda folder: jsonl(folder, {"question": "a", "answer": {"x": 1}}), "the answer .* is an object"),
    ],
)
def test_an_unreadable_data_set_is_an_error_that_names_it(tmp_path: Path, make: Any, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        read_questions(make(tmp_path))
    assert caught.value.hint


def test_columns_with_names_of_their_own_stand_after_the_path(tmp_path: Path) -> None:
    row = {"Frage": "1+1?", "extra info": {"Antwort": "2"}, "question": "not this one"}
    path = jsonl(tmp_path, row) + "?question=Frage&answer=extra+info.Antwort"
    (question,) = read_questions(path)
    assert (question.text, question.answer) == ("1+1?", "2")


def test_bad_rows_are_left_out_and_counted_when_the_path_says_so(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"question": "a"}, {"question": "\ud83d"}, {"text": "b"}, 5, {"question": "c"})
    with structlog.testing.capture_logs() as logs:
        questions = read_questions(path + "?bad_rows=leave_out")
    assert [(question.row, question.text) for question in questions] == [(0, "a"), (4, "c")]
    assert [entry["rows"] for entry in logs if entry["event"] == "bad_rows_left_out"] == [3]


def test_a_recorded_conversation_is_asked_up_to_its_last_question(tmp_path: Path) -> None:
    turns = chat(("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"), ("assistant", "4"))
    question = only(tmp_path, {"messages": turns})
    assert (list(question.messages), question.answer) == (turns[:4], "4")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_the_shared_files_are_recognised() -> None:
    """Rows, and how many of them have no reference answer in their file."""
    expected = {
        "benchmarks/math500.parquet": (500, 0),
        "benchmarks/gsm8k_test.jsonl": (1319, 0),
        "train/dsr_sub.parquet": (1209, 1),
        "train/deepscaler_aime.json": (975, 0),
        "train/deepscaler_math.json": (7474, 4),
        "train/math_train.parquet": (7500, 4),
    }
    for name, counts in expected.items():
        questions = read_questions(str(SHARED / name))
        assert (len(questions), sum(question.answer is None for question in questions)) == counts


def test_rows_of_several_data_sets_are_numbered_on_and_carry_their_weights(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    first = jsonl(tmp_path, {"question": "a"}, {"question": "b"}, {"question": "c"})
    second = jsonl(tmp_path / "second", {"question": "d"}, {"question": "e"})
    questions = read_questions(f"{first} + {second}?weight=2")
    assert [(one.row, one.text, one.weight) for one in questions] == [
        (0, "a", 1.0), (1, "b", 1.0), (2, "c", 1.0), (3, "d", 2.0), (4, "e", 2.0)
    ]  # fmt: skip
    assert [one.text for one in read_questions(f"{first} + {second}", limit=1)] == ["a", "d"]
