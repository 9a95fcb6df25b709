"""Commands that start one part of a run: `sept run` and containers use them, and people who add generators."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import exit_codes
from deploy.unattended import hang_up_means, work_unattended
from sept.arguments import Config, Sets

if TYPE_CHECKING:
    from deploy.settings import Settings


def services(*, config: Config, sets: Sets = ()) -> None:
    """Serve weight sync, status, metrics and control over HTTP."""
    from deploy.parts import start_services

    start_services(_joined(config, sets))


def learner(*, config: Config, sets: Sets = ()) -> int:
    """Train; ends after the last round."""
    from deploy.local.rank_launcher import is_rank, start_ranks
    from deploy.parts import start_learner

    settings = _joined(config, sets)
    if settings.training.ranks > 1 and not is_rank():
        again = ["learner", "--config", str(config), *(word for text in sets for word in ("--set", text))]
        return start_ranks(again, settings.training.ranks)
    return exit_codes.of_outcome(start_learner(settings))


def generator(*, config: Config, id: str | None = None, sets: Sets = ()) -> None:
    """Join a run as one more generator; may come and go at any time.

    Parameters
    ----------
    id
        Name in status and logs; default: one of its own.
    """
    from deploy.parts import own_generator_id, start_generator

    start_generator(_joined(config, sets, as_generator=True), id or own_generator_id())


def evaluator(*, config: Config, sets: Sets = ()) -> int:
    """Evaluate in the learner's place; ends when every answer is graded. `sept eval` starts it."""
    from deploy.parts import start_evaluator

    return exit_codes.of_outcome(start_evaluator(_joined(config, sets)))


def _joined(config: Path, sets: tuple[str, ...], *, as_generator: bool = False) -> Settings:
    """The settings of a part that works on without its terminal: it drains when that is closed."""
    from deploy.load_settings import load

    work_unattended(by_thread=False)
    hang_up_means(signal.SIGTERM)
    return load(config, sets, join=True, as_generator=as_generator)
