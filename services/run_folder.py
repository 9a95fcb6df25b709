"""Every path of a run's folder and of an evaluation's folder, and the run's identity.

config.toml      the settings as resolved, without secrets
run.json         run_id and rounds_total
identity.key     by which the services prove which run is theirs (0600)
tokens.json      tokens that were made or revoked while the run goes on, as digests (0600)
endpoints.json   where Redis and the services of a local run listen, with their secrets (0600)
metrics.jsonl    one line a round
queue.jsonl      how full the queues were, one line every few seconds
rollouts/        one file a round: questions, answers, versions, NLL
evaluations/     one folder an evaluated version
exports/         versions as Hugging Face model folders that people asked for
best/            the version with the highest pass@1 of a run with health.action = "stop", as such a folder
model/           the model that the demo trained or that an evaluation reads, as a Hugging Face folder
weights/         published versions
mirrors/         one folder a generator: what its engine starts from; .downloads and .copies are for all of a host
checkpoints/     what the learner resumes from
logs/            one file a part
tensorboard/     event files; Weights & Biases adds wandb/, and MLflow keeps its files elsewhere
redis/           the embedded server's append-only file
flight-*.json    what is known about a failure of the run
*.lock           held by the supervisor and by the learner

`sept eval` runs in a folder that is a run's folder and an evaluation's folder at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from services import durable
from services.contracts import RoundMetrics
from services.errors import ConfigError

RUNS = Path("runs")
"""Folder of the run folders, unless a setting or an argument names another."""

_VERSION_NAME = re.compile(r"v([0-9]{6,})")
_ROUND_NAME = re.compile(r"round-([0-9]{6,})\.jsonl")


def version_name(weight_version: int) -> str:
    """12 -> "v000012": the name of everything that is kept by version."""
    return f"v{weight_version:06d}"


def versions_in(folder: Path) -> list[int]:
    """The versions that are kept in this folder, ascending; what has another name, such as a copy, is none of them."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _VERSION_NAME.fullmatch(name)))


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Which run it is: what its services prove and its clients check."""

    run_id: str
    key: bytes = field(repr=False)
    """Secret of the run's folder: whoever may read that can prove to be the run."""

    def proof(self, challenge: str) -> str:
        """The answer to the challenge that only a holder of the key can give."""
        return hmac.new(self.key, f"sept identity {self.run_id} {challenge}".encode(), hashlib.sha256).hexdigest()


class EvaluationFolder:
    """Paths below the folder of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = path / "evaluation.json"
        """What the answers were sampled from: the weights' digest and the settings that make them comparable."""
        self.generations = path / "generations.jsonl"
        """One line a graded answer."""
        self.results = path / "results.json"
        """pass@k; it is there once the evaluation is complete."""
        self.figure = path / "pass_at_k.png"
        self.general = path / "general"
        """What the general benchmarks write."""


class CheckpointFolder:
    """Paths below the folder of one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = path / "meta.json"
        """Run, version, and the digest of every state file."""

    def state_of(self, rank: int) -> Path:
        """The rows of weights and moments that this rank holds."""
        return self.path / f"state-{rank:05d}.safetensors"


class RunFolder:
    """Paths below one run's folder; `create` makes the folder and the run's identity once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.identity = path / "run.json"
        self.identity_key = path / "identity.key"
        self.tokens = path / "tokens.json"
        self.endpoints = path / "endpoints.json"
        self.metrics = path / "metrics.jsonl"
        self.queue_history = path / "queue.jsonl"
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.exports = path / "exports"
        self.best = path / "best"
        self.model = path / "model"
        self.weights = path / "weights"
        self.mirrors = path / "mirrors"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.tensorboard = path / "tensorboard"
        self.redis = path / "redis"
        self.supervisor_lock = path / "supervisor.lock"
        self.learner_lock = path / "learner.lock"
        self.learner_epoch = path / "learner.epoch"
        """Number of the learner that may write here, see `services.streams.fence`."""

    def create(self, run_id: str | None = None) -> RunFolder:
        """Make the folder, its parts and its identity where they are missing; `run_id`: of a run begun elsewhere."""
        with durable.explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.identity.exists() and self.path.stat().st_uid == os.geteuid():  # a volume may be another's
                self.path.chmod(0o700)
            for folder in (self.rollouts, self.weights, self.checkpoints, self.logs):
                folder.mkdir(exist_ok=True)
        if self._is_damaged() and (known := self._known_run_id()):
            durable.write_file(self.identity, json.dumps({"run_id": known}) + "\n")
        if not self.identity.exists():
            drawn = f"{self.path.resolve().name[:40] or 'run'}-{uuid.uuid4().hex[:8]}"
            safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in drawn).lstrip("._-")
            text = json.dumps({"run_id": run_id or safe}) + "\n"
            durable.create_file(self.identity, text)  # parts may come first together
        if not self.identity_key.exists():
            durable.create_file(self.identity_key, secrets.token_hex(32) + "\n", mode=0o600)
        return self

    def _is_damaged(self) -> bool:
        """Whether there was a run here, and run.json does not name it."""
        try:
            self.run_id  # noqa: B018 - read for its error
        except ConfigError:
            return True
        return False

    def _known_run_id(self) -> str | None:
        """The run's name in its newest checkpoint or version that can be read."""
        kept = [*sorted(self.checkpoints.glob("v*/meta.json")), *sorted(self.weights.glob("*/manifest.json"))]
        for path in reversed(kept):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if isinstance(run_id := json.loads(path.read_bytes())["run_id"], str):
                    return run_id
        return None

    @property
    def run_id(self) -> str:
        """The run's name on Redis and in manifests, drawn once when the folder was created."""
        try:
            return str(json.loads(self.identity.read_text())["run_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.identity} does not name a run ({type(error).__name__})",
                hint="start the run with `sept run`, or point run.dir at the folder of one that was started",
            ) from error

    @property
    def run_identity(self) -> RunIdentity:
        """What the run's services prove and its clients check; ConfigError when the folder is of no run."""
        try:
            key = self.identity_key.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{self.identity_key} cannot be read ({error.strerror})",
                hint="only the user who started the run may join it; a run that was started before has it again "
                "after `sept run`",
            ) from error
        return RunIdentity(self.run_id, key)

    @property
    def has_begun(self) -> bool:
        """Whether a round was trained: what there is belongs to the settings that trained it."""
        return any(self.checkpointed()) or next(self.rounds(), None) is not None

    def start_over(self) -> None:
        """Forget what was made before the first round, and the identity; call it while nothing runs here.

        The new identity keeps what a Redis of somebody else's still holds of the old one apart.
        """
        self.identity.unlink(missing_ok=True)
        for made in (self.weights, self.checkpoints, self.rollouts, self.mirrors, self.redis):
            shutil.rmtree(made, ignore_errors=True)
        self.create()

    @property
    def rounds_total(self) -> int:
        """How many rounds the run is to have, as the learner noted; 0 before it has."""
        try:
            return int(json.loads(self.identity.read_bytes()).get("rounds_total", 0))
        except (OSError, ValueError, AttributeError, TypeError):
            return 0

    def note_rounds_total(self, rounds_total: int) -> None:
        """Write down how many rounds the run is to have, for what shows its progress."""
        durable.write_file(self.identity, json.dumps({"run_id": self.run_id, "rounds_total": rounds_total}) + "\n")

    def checkpointed(self) -> list[int]:
        """Versions that the learner has a checkpoint of and can go back to, ascending."""
        return versions_in(self.checkpoints)

    def checkpoint_of(self, weight_version: int) -> CheckpointFolder:
        """Where the checkpoint of that version is."""
        return CheckpointFolder(self.checkpoints / version_name(weight_version))

    def evaluation_of(self, weight_version: int) -> EvaluationFolder:
        """Where the run keeps its evaluation of that version."""
        return EvaluationFolder(self.evaluations / version_name(weight_version))

    def export_of(self, weight_version: int) -> Path:
        """Where that version is exported to when the run is asked for it."""
        return self.exports / version_name(weight_version)

    def mirror_of(self, generator_id: str) -> Path:
        """Where this generator keeps downloads, and the model folder that its engine starts from."""
        return self.mirrors / generator_id

    def rollouts_of(self, round_: int) -> Path:
        """The file of that round's rollouts."""
        return self.rollouts / f"round-{round_:06d}.jsonl"

    def rollout_files(self) -> list[tuple[int, Path]]:
        """(round, file) of every round whose rollouts are recorded, ascending."""
        paths = list(self.rollouts.iterdir()) if self.rollouts.is_dir() else []
        return sorted((int(match[1]), path) for path in paths if (match := _ROUND_NAME.fullmatch(path.name)))

    def log_of(self, part: str) -> Path:
        """What the part writes to its standard output and error."""
        return self.logs / f"{part}.log"

    def log_files(self) -> dict[str, Path]:
        """Part -> its log, for all parts that have one, by name."""
        return {path.stem: path for path in sorted(self.logs.glob("*.log"))}

    def new_flight_record(self) -> Path:
        """A file for what is known about a failure that happened now."""
        return self.path / f"flight-{time.strftime('%Y%m%dT%H%M%S')}.json"

    def rounds(self) -> Iterator[RoundMetrics]:
        """The rounds recorded in metrics.jsonl, in order; a line cut short by a crash is left out."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValidationError):
                    yield RoundMetrics.model_validate_json(line)


def last_lines(path: Path, within_bytes: int) -> list[bytes]:
    """The lines in the last `within_bytes` of a file, without their ends; none where there is no file.

    The first may lack its beginning, the last its end.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - within_bytes))
            return file.read().splitlines()
    except FileNotFoundError:
        return []
