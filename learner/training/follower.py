"""What the ranks other than 0 do: the same as rank 0, on its orders."""

from __future__ import annotations

import contextlib
import signal

import structlog

from learner.model.canary import join_canaries
from learner.model.wire_tensors import wire_adapters, wire_changes, wire_tensors
from learner.parallel.ranks import Order, RoundAbandoned
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer

log = structlog.get_logger()


def follow(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Follow rank 0 until it orders to stop. Only rank 0 handles signals, and ends at a safe point."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while (order := trainer.model.ranks.receive_order()) is not Order.STOP:
        _obey(order, trainer, checkpoints)


def _obey(order: Order, trainer: Trainer, checkpoints: Checkpoints) -> None:
    model = trainer.model
    if order is Order.TRAIN:
        with contextlib.suppress(RoundAbandoned):
            trainer.train_round()
    elif order is Order.FORWARD:
        model.join_leader_forward()
    elif order is Order.CANARIES:
        join_canaries(model)
    elif order is Order.WEIGHTS:
        wire_tensors(model)
    elif order is Order.CHANGES:
        wire_changes(model)
    elif order is Order.ADAPTERS:
        wire_adapters(model)
    elif order is Order.BEGIN_CHECKPOINT:
        checkpoints.begin(0, trainer.state_dict())
    elif order is Order.COMMIT_CHECKPOINT:
        checkpoints.commit()
    elif (checkpoint := checkpoints.load()) is not None:
        trainer.load_state_dict(checkpoint.tensors)
