"""The tool that measures the tests: its modules exist and have tests, and every equivalent mutant has its reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.mutants.__main__ import EQUIVALENT, Score, _same_but_for_casts, equivalents
from tests.mutants.targets import ALSO, PROMISES, ROOT, Target, targets

WITHOUT_FUNCTIONS = {"learner/algorithm_list.py", "services/streams/scripts.py"}
"""Tables and scripts of another language: mutmut changes functions only."""


def test_every_promise_is_a_module_or_folder_with_tests() -> None:
    assert all((ROOT / promise).exists() for promise in PROMISES)
    assert all((ROOT / test).exists() for tests in ALSO.values() for test in tests)
    found = targets()
    assert ALSO.keys() <= {target.module for target in found}
    assert all(not target.tests for target in found if target.module in WITHOUT_FUNCTIONS)
    assert sum(bool(target.tests) for target in found) > 60
    assert Target("services/streams/tasks.py", ()).name == "services.streams.tasks"


def test_equivalent_mutants_are_of_these_modules_and_have_a_reason() -> None:
    entries = tomllib.loads(EQUIVALENT.read_text())
    assert entries.keys() <= {target.module for target in targets()}
    for module, changes in entries.items():
        assert all(set(change) == {"was", "now", "why"} and change["why"] for change in changes)
        assert all(was != now for was, now in equivalents(module))


def test_an_entry_without_a_reason_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.toml"
    path.write_text('[["a.py"]]\nwas = "x"\nnow = "y"\nwhy = ""\n[["a.py"]]\nwas = "u"\nnow = "v"\nwhy = "z"\n')
    assert equivalents("a.py", path) == {("u", "v")}
    assert equivalents("b.py", path) == set()


def test_the_share_counts_what_could_be_noticed() -> None:
    score = Score(Target("a.py", ()), killed=9, equivalent=5, untried=2, survivors=[("x", "y")])
    assert score.share == 0.9
    assert score.as_row() == "| a.py | 9 | 1 | 5 | 2 | 90% |"
    assert Score(Target("a.py", ())).share is None


def test_a_type_that_only_the_checker_reads_makes_no_difference() -> None:
    was = 'found = cast("list[int]", streams[0])'
    assert _same_but_for_casts(was, "found = cast(None, streams[0])")
    assert _same_but_for_casts(was, 'found = cast("LIST[INT]", streams[0])')
    assert not _same_but_for_casts(was, 'found = cast("list[int]", streams[1])')
    assert not _same_but_for_casts(was, 'found = cast("list[int]", None)')
