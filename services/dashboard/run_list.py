"""Finds the runs and the reports of studies below folders, and sums up each run in a row."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from services.api.status import RunState
from services.dashboard.recorded import name_of, recorded_status
from services.dashboard.timeseries import TimeSeries
from services.run_folder import RunFolder
from services.weights.reader import WeightReader

DEPTH = 4
"""How many folders deep runs are looked for."""
LOOK_EVERY_S = 2.0
"""How long a list of the folders holds; a later request makes a new one."""
REPORT = "report.json"
"""What a study writes beside its runs."""
NO_DIFFERENCE = frozenset({"run.dir", "services.port", "redis.url"})
"""Settings that differ between any two runs."""

_PASS_AT_1 = re.compile(r"pass@1 (?P<benchmark>.+), (?P<temperature>[^,]+)")

Setting = str | int | float | bool | None | list[Any]


class BestPassAt1(BaseModel):
    """The greatest pass@1 that a run measured while it trained."""

    value: float
    """0 .. 1."""
    benchmark: str
    """"mean" where there are several."""
    temperature: float


class RunSummary(BaseModel):
    """A run in a row."""

    key: str
    """Names the run in addresses of this page."""
    run_id: str
    folder: str
    state: RunState
    detail: str
    round: int
    rounds_total: int
    best: BestPassAt1 | None
    changed_at: float
    """Unix seconds of its last round, or of its start."""
    differing: dict[str, Setting]
    """Settings in which the runs of the list differ, by name; None: not set."""


class FoundRun:
    """A run's folder and what was read of it."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.store = WeightReader(self.folder.weights, name_of(self.folder))
        self.rounds = TimeSeries(self.folder.metrics)

    def settings(self) -> dict[str, Setting]:
        """Name -> value of every setting in config.toml; empty where it cannot be read."""
        try:
            return dict(_flat(tomllib.loads(self.folder.config.read_text())))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return {}

    def best(self) -> BestPassAt1 | None:
        """The greatest mean pass@1, or that of the only benchmark."""
        measured = [match for name in self.rounds.names() if (match := _PASS_AT_1.fullmatch(name))]
        means = [match for match in measured if match["benchmark"] == "mean"] or measured
        found = [
            BestPassAt1(value=value, benchmark=match["benchmark"], temperature=float(match["temperature"]))
            for match in means
            if (value := self.rounds.greatest(match.string)) is not None
        ]
        return max(found, key=lambda best: best.value, default=None)

    def changed_at(self) -> float:
        for path in (self.folder.metrics, self.folder.config, self.folder.identity):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return 0.0


class RunList:
    """The runs below some folders, each under a key that no caller can turn into another path.

    runs = RunList([Path("runs")])
    runs.find("sums-1f6d0c2a")      # the run of that key, None when there is none
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.resolve() for root in roots]
        self._runs: dict[str, FoundRun] = {}
        self._reports: list[Path] = []
        self._looked_at = -LOOK_EVERY_S
        self._lock = threading.Lock()

    def find(self, key: str) -> FoundRun | None:
        """The run that a key names."""
        return self._look()[0].get(key)

    def summaries(self) -> list[RunSummary]:
        """All runs, the one that changed last first."""
        runs = self._look()[0]
        settings = {key: run.settings() for key, run in runs.items()}
        differing = differences(settings)
        rows = [_summary(key, run, {name: settings[key].get(name) for name in differing}) for key, run in runs.items()]
        return sorted(rows, key=lambda row: row.changed_at, reverse=True)

    def reports(self) -> list[dict[str, Any]]:
        """What the studies found, by folder; those that cannot be read are left out."""
        found = []
        for path in self._look()[1]:
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(path.read_bytes())
                if isinstance(content, dict) and isinstance(content.get("methods"), dict):
                    found.append({"folder": str(path.parent)} | content)
        return found

    def _look(self) -> tuple[dict[str, FoundRun], list[Path]]:
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
                folders, self._reports = search(self._roots)
                keys = {key_of(path): path for path in folders}
                self._runs = {key: self._runs.get(key) or FoundRun(path) for key, path in keys.items()}
                self._looked_at = time.monotonic()
            return self._runs, self._reports


def search(roots: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(folders of runs, reports of studies) in and below the roots; links are not followed."""
    runs: dict[Path, None] = {}
    reports: dict[Path, None] = {}
    for root in roots:
        for at, folders, files in os.walk(root):
            path = Path(at)
            if "run.json" in files:
                runs[path] = None
                folders.clear()  # what is in a run's folder is its own
            if REPORT in files:
                reports[path / REPORT] = None
            if len(path.relative_to(root).parts) >= DEPTH:
                folders.clear()
    return list(runs), list(reports)


def key_of(path: Path) -> str:
    """The folder's name where that is plain, and a digest of its whole path."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", path.name)[:40].lstrip(".") or "run"
    return f"{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def differences(settings: Mapping[str, Mapping[str, Setting]]) -> list[str]:
    """Names of the settings that have not the same value in all runs whose settings are known."""
    known = [values for values in settings.values() if values]
    names = sorted({name for values in known for name in values} - NO_DIFFERENCE)
    return [name for name in names if any(values.get(name) != known[0].get(name) for values in known)]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Setting]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str | int | float | bool | list) else str(value)


def _summary(key: str, run: FoundRun, differing: dict[str, Setting]) -> RunSummary:
    status = recorded_status(run.folder, run.store)
    return RunSummary(
        key=key,
        run_id=status.run_id,
        folder=str(run.folder.path),
        state=status.state,
        detail=status.detail,
        round=status.round,
        rounds_total=status.rounds_total,
        best=run.best(),
        changed_at=run.changed_at(),
        differing=differing,
    )
