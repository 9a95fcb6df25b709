"""The paths of a run's folder, and the run's identity. Knows names, not contents.

config.toml      the settings as resolved, without secrets
run.json         run_id and rounds_total
endpoints.json   where Redis and the services of a local run listen, with their secrets (0600)
metrics.jsonl    one line a round
rollouts/        one file a round: questions, answers, versions, NLL
evaluations/     one folder an evaluated version: every answer with its verdict, pass@k
exports/         versions as Hugging Face model folders, for whoever asked
weights/         published versions
checkpoints/     what the learner resumes from
logs/            one file a part
redis/           the embedded server's append-only file
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from services import durable
from services.contracts import RoundMetrics
from services.errors import ConfigError


class RunFolder:
    """Paths below one run's folder; `create` makes the folder and the run's identity once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.identity = path / "run.json"
        self.endpoints = path / "endpoints.json"
        self.metrics = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.exports = path / "exports"
        self.weights = path / "weights"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.redis = path / "redis"

    def create(self) -> RunFolder:
        """Make the folder, its parts and its identity where they are missing."""
        with durable.explained(self.path):
            for folder in (self.path, self.rollouts, self.weights, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        if not self.identity.exists():
            run_id = f"{self.path.resolve().name[:40] or 'run'}-{uuid.uuid4().hex[:8]}"
            safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in run_id).lstrip("._-")
            durable.create_file(self.identity, json.dumps({"run_id": safe}) + "\n")  # parts may come first together
        return self

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

    def note_rounds_total(self, rounds_total: int) -> None:
        """Write down how many rounds the run is to have, for whoever shows its progress."""
        durable.write_file(self.identity, json.dumps({"run_id": self.run_id, "rounds_total": rounds_total}) + "\n")

    def checkpointed(self) -> list[int]:
        """Versions that the learner has a checkpoint of and can go back to, ascending."""
        return sorted(int(path.name[1:]) for path in self.checkpoints.glob("v[0-9]*"))

    def export_of(self, weight_version: int) -> Path:
        """Where that version is exported to when the run is asked for it."""
        return self.exports / f"v{weight_version:06d}"

    def rounds(self) -> Iterator[RoundMetrics]:
        """The rounds recorded in metrics.jsonl, in order; a line cut short by a crash is left out."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValidationError):
                    yield RoundMetrics.model_validate_json(line)


def last_lines(path: Path, within_bytes: int) -> list[bytes]:
    """The lines in the last so many bytes of a file, without their ends; none of a file that is not there.

    The first may lack its beginning, the last its end.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - within_bytes))
            return file.read().splitlines()
    except FileNotFoundError:
        return []
