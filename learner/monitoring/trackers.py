"""Experiment trackers: TensorBoard, Weights & Biases and MLflow get the numbers of every line of metrics.jsonl.

A tracker that is not installed or does not answer is an error when the run starts. A server that fails later delays no
round.
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
"""Tracker -> the extra of sept that installs its package."""
CLOSE_S = 60.0
"""How long Weights & Biases may upload at the end; `wandb sync` sends the rest."""

log = structlog.get_logger()


class Tracker(Protocol):
    """Stores numbers by round."""

    def begin(self, round_: int) -> None:
        """Rounds from this one on follow. It may have some of them already, from before a rollback or a resume."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        """Store the round's numbers."""

    def close(self) -> None:
        """Send what is left."""


def numbers_of(metrics: RoundMetrics) -> dict[str, float]:
    """A round's numbers by name; an evaluation's are named like "math500/pass_at_8/tau_1"."""
    plain = {name: value for name, value in metrics.model_dump().items() if isinstance(value, int | float)}
    return plain | dict(_evaluation_numbers(metrics.evaluations))


def _evaluation_numbers(evaluations: Sequence[EvaluationMetrics]) -> Iterator[tuple[str, float]]:
    for evaluation in evaluations:
        for benchmark, by_k in evaluation.pass_at_k.items():
            for k, value in by_k.items():
                yield f"{benchmark}/pass_at_{k}/tau_{evaluation.temperature:g}", value


def open_trackers(names: Sequence[str], folder: RunFolder) -> list[Tracker]:
    """The named trackers for one run; ConfigError for one that is not installed names its extra."""
    kinds: dict[str, Callable[[RunFolder], Tracker]]
    kinds = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return [kinds[name](folder) for name in names]


def _import_tracker(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers names {name}, which cannot be imported: {error}",
            hint=f"pip install 'sept[{EXTRAS[name]}]', or leave it out",
        ) from error


@contextlib.contextmanager
def _opening_errors(name: str, raised: type[Exception], hint: str) -> Iterator[None]:
    """Turn an error while a tracker opens into UnavailableError with a hint."""
    try:
        yield
    except raised as error:
        raise UnavailableError(f"run.trackers names {name}, which does not open: {error}", hint=hint) from error


class TensorBoard:
    """Event files in the run's tensorboard/; show them with `tensorboard --logdir RUN`."""

    def __init__(self, folder: RunFolder) -> None:
        self._writers = _import_tracker("tensorboard", "torch.utils.tensorboard")
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
    """A Weights & Biases run of the same name, configured by WANDB_* variables. Rounds trained again show twice."""

    def __init__(self, folder: RunFolder) -> None:
        project = os.environ.get("WANDB_PROJECT", "sept")
        package = _import_tracker("wandb", "wandb")
        with _opening_errors("wandb", package.Error, "log in with `wandb login`, or set WANDB_MODE=offline"):
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
        """Its history is append-only."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "round": round_})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run, configured by MLFLOW_* variables and continued on resume. Rounds trained again show twice."""

    def __init__(self, folder: RunFolder) -> None:
        self._mlflow = _import_tracker("mlflow", "mlflow")
        with _opening_errors(
            "mlflow", self._mlflow.MlflowException, "MLFLOW_TRACKING_URI says where its server or store is"
        ):
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "sept"))
            known = self._mlflow.search_runs(
                filter_string=f"attributes.run_name = '{folder.run_id}'", output_format="list", max_results=1
            )
            run = {"run_id": known[0].info.run_id} if known else {"run_name": folder.run_id}
            self._mlflow.start_run(**run)

    def begin(self, round_: int) -> None:
        """Its history is append-only."""

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        # sent by a thread of MLflow, which retries for minutes and logs what it could not send
        self._mlflow.log_metrics(dict(values), step=round_, synchronous=False)

    def close(self) -> None:
        try:
            self._mlflow.end_run()
        except self._mlflow.MlflowException as error:  # the run has ended and is complete
            log.warning("tracker_not_closed", tracker="mlflow", error=str(error))
