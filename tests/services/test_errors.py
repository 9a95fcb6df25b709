"""What every error of ours says: what happened, and what to do about it."""

from __future__ import annotations

import inspect

from services import errors


def test_the_remedy_stands_below_the_message() -> None:
    error = errors.ConfigError("training.rounds is 0", hint="set it to 1 or more")
    assert (error.message, error.hint) == ("training.rounds is 0", "set it to 1 or more")
    assert str(error) == "training.rounds is 0\n\nhint: set it to 1 or more"
    assert str(errors.ConfigError("no remedy")) == "no remedy"


def test_a_deadline_names_who_what_and_how_long() -> None:
    error = errors.DeadlineError("Redis", "an answer", 2.345, hint="start it")
    assert str(error) == "waited 2.3 s for Redis: an answer\n\nhint: start it"
    assert (error.who, error.what, error.seconds) == ("Redis", "an answer", 2.345)


def test_all_errors_are_in_the_drawn_tree() -> None:
    ours = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.SeptError)]
    assert len(ours) > 10
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in ours)
