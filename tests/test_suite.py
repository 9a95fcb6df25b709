"""The tests themselves: none that cannot fail, and the check that says so finds every kind of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.unfailing import asserting_helpers, complaints

HERE = Path(__file__).parent


def test_no_test_is_unable_to_fail() -> None:
    paths = {".".join(path.relative_to(HERE.parent).with_suffix("").parts): path for path in HERE.rglob("*.py")}
    trees = {module: ast.parse(path.read_text()) for module, path in paths.items()}
    helpers = asserting_helpers(trees)
    wrong = [
        f"{paths[module].relative_to(HERE.parent)}:{line}: {what}"
        for module, tree in sorted(trees.items())
        for line, what in complaints(tree, helpers[module])
    ]
    assert "\n".join(wrong) == ""
    assert len(trees) > 200, "the tests were read"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("no assertion", "run()"),
        ("no assertion", "plain_helper()"),
        ("nothing but constants", "assert 'it works'"),
        ("nothing but constants", "assert (run(), 'and says why')"),
        ("nothing but constants", "assert len(run()) >= 0"),
        ("nothing but constants", "found = run(); assert found == found"),
        ("nothing but constants", "assert run() or True"),
        ("nothing but constants", "assert (one > 0 for one in run())"),
        ("a message that is none", "assert run().status_code, 200"),
        ("a chain that hides", "a, b, c = run(); assert a != b != c"),
        ("a chain that hides", "a, b, c = run(); assert a < b > c"),
        ("a chain that hides", "a, b, c = run(); assert a in b != c"),
        ("in a callback", "def seen(value):\n        assert value\n    run(seen)"),
        ("in a callback", "class Watch:\n        def seen(self, value):\n            assert value\n    run(Watch())"),
        (
            "in a handler",
            "assert run()\n    try:\n        run()\n    except OSError as error:\n        assert error.errno",
        ),
        ("in a branch", "if run():\n        assert run()"),
    ],
)
def test_every_kind_is_found(kind: str, body: str) -> None:
    assert [what for what in found(body) if kind in what]


@pytest.mark.parametrize(
    "body",
    [
        "assert run() == 1",
        "asserting_helper()",
        "with raises(OSError):\n        run()",
        "a, b, c = run(); assert 0 < a <= b == c",
        "a, b, c = run(); assert a == b != c",
        "def check(value):\n        assert value\n    check(run())",
        "def seen(value):\n        assert value\n    run(seen)\n    assert run()",
        "try:\n        run()\n    except OSError as error:\n        assert error.errno\n    else:\n        fail()",
        "if run():\n        assert run()\n    else:\n        assert not run()",
    ],
)
def test_a_test_that_can_fail_is_left_alone(body: str) -> None:
    assert found(body) == []


def found(body: str) -> list[str]:
    helpers = "def asserting_helper(): deeper()\ndef deeper(): assert run()\ndef plain_helper(): run()\n"
    tree = ast.parse(f"{helpers}def test_something():\n    {body}\n")
    return [what for _, what in complaints(tree, asserting_helpers({"test": tree})["test"])]
