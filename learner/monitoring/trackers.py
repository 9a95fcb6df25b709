"""Experiment trackers: the line of metrics.jsonl, also where people compare runs. Knows no round's contents.

One small class per tracker, all fed with the same numbers. What is not installed or does not answer is refused
when the run starts; a server that goes away later holds up no round.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import structlog

from services.contracts import EvaluationMetrics, RoundMetrics
from services.errors import ConfigError, UnavailableError
from services.run_folder import RunFolder

EXTRAS = {"tensorboard": "trackers", "wandb": "wandb", "mlflow": "mlflow"}
"""Which extra of sept brings which package."""
CLOSE_S = 60.0
"""How long Weights & Biases may take at the end for what is left; `wandb sync` sends the rest."""

log = structlog.get_logger()


class Tracker(Protocol):
    """Something that keeps numbers by round."""

    def begin(self, round_: int) -> None:
        """Rounds from this one on come next; of those it may know already from before the run went back."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        """Keep the round's numbers."""

    def close(self) -> None:
        """Hand over what is left."""


def numbers_of(metrics: RoundMetrics) -> dict[str, float]:
    """A round's numbers by name; those of an evaluation as "math500/pass_at_8/tau_1"."""
    plain = {name: value for name, value in metrics.model_dump().items() if isinstance(value, int | float)}
    return plain | dict(_evaluated(metrics.evaluations))


def _evaluated(evaluations: Sequence[EvaluationMetrics]) -> Iterator[tuple[str, float]]:
    for found in evaluations:
        for benchmark, by_k in found.pass_at_k.items():
            for k, value in by_k.items():
                yield f"{benchmark}/pass_at_{k}/tau_{found.temperature:g}", value


def open_trackers(names: Sequence[str], folder: RunFolder) -> list[Tracker]:
    """The named trackers for one run; ConfigError names the extra that brings a missing one."""
    kinds: dict[str, Callable[[RunFolder], Tracker]]
    kinds = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return [kinds[name](folder) for name in names]


def _package(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers names {name}, which cannot be imported: {error}",
            hint=f"pip install 'sept[{EXTRAS[name]}]', or leave it out",
        ) from error


@contextlib.contextmanager
def _reached(name: str, refusal: type[Exception], hint: str) -> Iterator[None]:
    """What goes wrong while a tracker opens is ours to tell: not its traceback, but what to do."""
    try:
        yield
    except refusal as error:
        raise UnavailableError(f"run.trackers names {name}, which does not open: {error}", hint=hint) from error


class TensorBoard:
    """Event files in the run's tensorboard/; show them with `tensorboard --logdir RUN`."""

    def __init__(self, folder: RunFolder) -> None:
        self._writers = _package("tensorboard", "torch.utils.tensorboard")
        self._path = folder.tensorboard
        self._writer: Any = None

    def begin(self, round_: int) -> None:
        self.close()
        self._writer = self._writers.SummaryWriter(str(self._path), purge_step=round_)

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A Weights & Biases run of the same name; its own WANDB_* variables say whose. Rounds done again show twice."""

    def __init__(self, folder: RunFolder) -> None:
        project = os.environ.get("WANDB_PROJECT", "sept")
        package = _package("wandb", "wandb")
        with _reached("wandb", package.Error, "log in with `wandb login`, or set WANDB_MODE=offline"):
            self._run = package.init(
                project=project,
                id=folder.run_id,
                name=folder.run_id,
                resume="allow",
                dir=str(folder.path),
                settings={"console": "off", "finish_timeout": CLOSE_S},  # numbers only: the log stays here
            )
        self._run.define_metric("*", step_metric="round")

    def begin(self, round_: int) -> None:
        """Its history only ever grows."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "round": round_})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run; MLFLOW_* variables say where. A resumed learner goes on with it. Rounds done again show twice."""

    def __init__(self, folder: RunFolder) -> None:
        self._mlflow = _package("mlflow", "mlflow")
        with _reached("mlflow", self._mlflow.MlflowException, "MLFLOW_TRACKING_URI says where its server or store is"):
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "sept"))
            known = self._mlflow.search_runs(
                filter_string=f"attributes.run_name = '{folder.run_id}'", output_format="list", max_results=1
            )
            which = {"run_id": known[0].info.run_id} if known else {"run_name": folder.run_id}
            self._mlflow.start_run(**which)

    def begin(self, round_: int) -> None:
        """Its history only ever grows."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        # from a thread of MLflow's own, which tries again for minutes and logs what it could not hand over
        self._mlflow.log_metrics(dict(values), step=round_, synchronous=False)

    def close(self) -> None:
        try:
            self._mlflow.end_run()
        except self._mlflow.MlflowException as error:  # the run itself is over and whole
            log.warning("tracker_not_closed", tracker="mlflow", error=str(error))
