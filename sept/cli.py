"""The `sept` command: its tree of commands, and how errors become messages and exit codes.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from cyclopts import App, CycloptsError, Group

from deploy import exit_codes
from sept import operate_commands, other_commands, part_commands, start_commands, token_commands
from services.errors import SeptError

app = App(
    name="sept",
    help="Reward-free online self-training of language models, as an asynchronous actor-learner service.",
    version=other_commands.own_version,
    version_flags=("--version",),
    result_action="return_value",
)


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what makes a shell complete these commands: `sept completion bash >> ~/.bashrc`."""
    sys.stdout.write(app.generate_completion(shell=shell))


def _add_commands() -> None:
    group = Group("A run", sort_key=1)
    app.command(start_commands.run, group=group)
    app.command(start_commands.ray, group=group)
    app.command(start_commands.evaluate, name="eval", group=group)
    app.command(start_commands.study, group=group)

    group = Group("Its parts", sort_key=2)
    for part in (part_commands.services, part_commands.learner, part_commands.generator, part_commands.evaluator):
        app.command(part, group=group)

    group = Group("Runs that were started", sort_key=3)
    scale = App(name="scale", help="Change how much of the machine a run uses.", group=group)
    scale.command(operate_commands.scale_generators, name="generators")
    app.command(scale)
    tokens = App(name="tokens", help="Make and revoke tokens, each for a role.", group=group)
    tokens.command(token_commands.add)
    tokens.command(token_commands.show, name="list")
    tokens.command(token_commands.revoke)
    app.command(tokens)
    app.command(operate_commands.status, group=group)
    app.command(operate_commands.page, group=group)
    app.command(operate_commands.logs, group=group)
    app.command(operate_commands.pause, group=group)
    app.command(operate_commands.resume, group=group)
    app.command(operate_commands.stop, group=group)
    app.command(operate_commands.checkpoint, group=group)
    app.command(operate_commands.rollback, group=group)

    group = Group("More", sort_key=4)
    for command in (other_commands.export, other_commands.doctor, completion, other_commands.version):
        app.command(command, group=group)


_add_commands()


def main(tokens: list[str] | None = None) -> None:
    """Entry point: runs one command and exits with its code. `--debug` shows tracebacks."""
    tokens = sys.argv[1:] if tokens is None else tokens
    debug = "--debug" in tokens
    command = [token for token in tokens if token != "--debug"]  # noqa: S105 - no password
    # At exit Python searches the million objects of torch for cycles, which takes seconds.
    atexit.register(gc.freeze)
    sys.exit(_exit_code_of(lambda: _run(command), debug=debug))


def _run(command: list[str]) -> Any:
    result = app(command, print_error=False, exit_on_error=False)
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where an error still has a meaning
    return result


def _exit_code_of(call: Callable[[], Any], *, debug: bool) -> int:
    """The exit code of the call; prints its error, or raises it when `debug` is set."""
    try:
        result = call()
    except KeyboardInterrupt:
        return 130
    except CycloptsError as error:
        _show(str(error), "sept --help lists the commands, sept COMMAND --help what they take")
        return exit_codes.BAD_CONFIG
    except Exception as error:  # every error is shown here, once
        if _has_no_reader(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left cannot be shown either
            return exit_codes.NO_READER
        if debug:
            raise
        return _show_error(error)
    return result if isinstance(result, int) else exit_codes.OK


def _has_no_reader(error: Exception) -> bool:
    """Whether standard output failed: `| head` has seen enough, or the terminal is closed. Files name themselves."""
    shown_here = sys.stdout is sys.__stdout__  # other streams never fail (deploy.unattended)
    return shown_here and isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and not error.filename


def _show_error(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, SeptError):
        _show(f"{type(error).__name__}: {error}", "this is a defect of sept; --debug before the command shows where")
        return exit_codes.FAILED
    _show(error.message, error.hint)
    return exit_codes.code_of(error)


def _show(message: str, hint: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        sys.stderr.write(f"sept: {message}\n" + (f"\nhint: {hint}\n" if hint else ""))
