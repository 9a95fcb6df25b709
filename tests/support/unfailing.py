"""Finds tests that cannot fail for what they are named for, by reading them.

no assertion            nothing in the test, nor in a helper that it calls, asserts anything
nothing but constants   `assert "text"`, `assert (x, "message")`, `assert len(x) >= 0`, `assert x == x`
a message that is none  `assert answer.status_code, 200`
a chain that hides      `a != b != c` says nothing about a and c
in a callback           all its assertions stand in an inner function whose name only others know
in a handler            `except Error: assert ...`, and nothing fails when there is no error
in a branch             all its assertions stand under an `if` without an `else`
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

Function = ast.FunctionDef | ast.AsyncFunctionDef
INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)

ASSERTING = frozenset(
    {"raises", "warns", "fail", "timeout", "wait_for", "expect", "validate", "run_state_machine_as_test"}
)
"""Names of libraries whose calls fail a test, beside `assert_...`; a deadline is an assertion, too."""


def asserting_helpers(trees: Mapping[str, ast.Module]) -> dict[str, frozenset[str]]:
    """By module: the names of functions and methods, its own and those of modules it imports, that assert.

    Also those that assert by way of others. Trees are those of all tests by their dotted names.
    """
    functions = {module: [n for n in ast.walk(tree) if isinstance(n, Function)] for module, tree in trees.items()}
    own: dict[str, set[str]] = {module: set() for module in trees}
    visible = {
        module: [own[name] for name in (module, *_imports(tree)) if name in own] for module, tree in trees.items()
    }
    while True:
        before = sum(map(len, own.values()))
        for module, defined in functions.items():
            known = ASSERTING.union(*visible[module])
            own[module] |= {f.name for f in defined if not f.name.startswith("test_") and _asserts(f, known)}
        if sum(map(len, own.values())) == before:
            return {module: ASSERTING.union(*sets) for module, sets in visible.items()}


def _imports(tree: ast.Module) -> set[str]:
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def complaints(tree: ast.Module, helpers: AbstractSet[str]) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) for the tests of one module; `helpers` are the names that assert."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield from ((node.lineno, what) for what in _of_assert(node))
        elif isinstance(node, Function) and node.name.startswith("test_"):
            yield from ((node.lineno, f"{node.name}: {what}") for what in _of_test(node, helpers))


def _of_assert(node: ast.Assert) -> Iterator[str]:
    if _is_constant(node.test):
        yield f"nothing but constants: {ast.unparse(node)}"
    if isinstance(node.msg, ast.Constant) and not isinstance(node.msg.value, str):
        yield f"a message that is none: {ast.unparse(node)}"
    for chain in ast.walk(node.test):
        if isinstance(chain, ast.Compare) and len(chain.ops) > 1 and not _is_transitive(chain.ops):
            yield f"a chain that hides: {ast.unparse(chain)}"


def _is_constant(test: ast.expr) -> bool:
    """Whether it is true whatever the program does."""
    if isinstance(test, ast.Constant | ast.JoinedStr | ast.Lambda | ast.GeneratorExp):
        return True
    if isinstance(test, ast.Tuple | ast.List | ast.Set | ast.Dict):
        return bool(test.keys if isinstance(test, ast.Dict) else test.elts)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(map(_is_constant, test.values))
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            return True
        is_length = isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "len"
        if is_length and isinstance(test.ops[0], ast.GtE) and isinstance(right, ast.Constant) and right.value == 0:
            return True
        same = ast.dump(left) == ast.dump(right) and not any(isinstance(n, ast.Call) for n in ast.walk(left))
        return same and isinstance(test.ops[0], ast.Eq | ast.LtE | ast.GtE | ast.Is)
    return False


def _is_transitive(ops: list[ast.cmpop]) -> bool:
    """Whether neighbours say all: so a single `!=` among `==` does, and two of them do not."""
    kinds = {type(op) for op in ops}
    if sum(isinstance(op, ast.NotEq) for op in ops) == 1:
        return kinds == {ast.Eq, ast.NotEq}
    return any(kinds <= {ast.Eq, ast.Is, *direction} for direction in ({ast.Lt, ast.LtE}, {ast.Gt, ast.GtE}))


def _of_test(test: Function, helpers: AbstractSet[str]) -> Iterator[str]:
    outside = [node for statement in test.body for node in _outside_callbacks(statement, _called_in(test))]
    if not any(_is_assertion(node, helpers) for node in outside):
        yield "in a callback" if _asserts(test, helpers) else "no assertion"
    elif all(_only_in_branch(statement) for statement in test.body if _asserts(statement, helpers)):
        yield "in a branch"
    for node in outside:
        if isinstance(node, ast.Try) and not _fails(node, helpers):
            later = (one for one in outside if getattr(one, "lineno", 0) > (node.end_lineno or 0))
            if not any(_is_assertion(one, helpers) for one in later):
                yield "in a handler"


def _fails(tried: ast.Try, helpers: AbstractSet[str]) -> bool:
    """Whether an assertion in a handler is backed by one that is reached without the error."""
    if not any(isinstance(node, ast.Assert) for handler in tried.handlers for node in ast.walk(handler)):
        return True
    return any(_asserts(statement, helpers) for statement in (*tried.body, *tried.orelse))


def _only_in_branch(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and not statement.orelse


def _called_in(test: Function) -> set[str]:
    """Names that the test itself calls, also as the argument of `partial`, `map` or a pool."""
    return {node.func.id for node in ast.walk(test) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def _outside_callbacks(node: ast.AST, called: set[str]) -> Iterator[ast.AST]:
    """The node and all below it, without inner functions that the test hands to others."""
    if isinstance(node, INNER) and getattr(node, "name", None) not in called:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_callbacks(child, called)


def _asserts(node: ast.AST, helpers: AbstractSet[str]) -> bool:
    return any(_is_assertion(inner, helpers) for inner in ast.walk(node))


def _is_assertion(node: ast.AST, helpers: AbstractSet[str]) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Raise):
        return node.exc is not None and "AssertionError" in ast.unparse(node.exc)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        return name is not None and (name in helpers or name.startswith("assert_"))
    return False
