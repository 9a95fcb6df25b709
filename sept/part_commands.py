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


def learner(*, config: Config, nodes: int | None = None, node: int | None = None, sets: Sets = ()) -> int:
    """Train; ends after the last round. With several ranks it starts those of this host.

    Parameters
    ----------
    nodes
        Hosts that train together, each with this command; default: as srun started it, else training.nodes.
    node
        Which of them this one is, from 0 on; node 0 has the run's folder. Default: as srun started it, else 0.
    """
    from deploy.local.node_place import place_of, run_id_of, slurm_place
    from deploy.local.rank_launcher import is_rank, start_ranks
    from deploy.parts import start_learner
    from services.logs import configure_logs

    slurm = None if nodes is not None or is_rank() else slurm_place()
    counted = nodes if nodes is not None else slurm[0] if slurm is not None else None
    sets = (f"training.nodes={counted}", *sets) if counted is not None else sets
    settings = _joined(config, sets)
    if settings.training.ranks == 1 or is_rank():
        return exit_codes.of_outcome(start_learner(settings))
    place = place_of(settings, node, slurm)
    configure_logs("learner" if settings.training.nodes == 1 else f"learner-node-{place}")
    again = ["learner", "--config", str(config), *(word for text in sets for word in ("--set", text))]
    return start_ranks(again, settings, run_id=run_id_of(settings, place), node=place)


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
