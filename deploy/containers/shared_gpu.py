"""One GPU for the learner's container and a generator's: what each gets of it, and who starts first.

`sept run` decides that for its own processes. Containers agree over a file in the folder that they share: the learner's
writes the engine's share into it before it loads, and holds a lock on it for as long as it lives. The generator's waits
until the learner has loaded and then takes that share, as vLLM measures the free memory when it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.containers.health import ask
from deploy.load_settings import load
from deploy.run_memory import memory_of_run, place_parts
from deploy.settings import Settings
from learner.parallel import launch_env
from services import durable
from services.api.status import has_loaded
from services.contracts import Part, StatusSnapshot
from services.errors import DeadlineError, UnavailableError

SHARE = "shared-gpu.json"
KEY = "memory_fraction"
LOOK_EVERY_S = 1.0
LET_GO_WITHIN_S = 30.0
"""For a learner before this one to end, and for generators that look at the file."""


def join(arguments: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments of the learner or generator with what it needs besides to share, and its further environment."""
    settings = _settings_of(arguments)
    if arguments[0] == Part.LEARNER.value:
        more, environment = take_as_learner(settings, folder)
        return [*arguments, *more], environment
    fraction = wait_as_generator(_read_status, folder, deadline_s=settings.deadlines.startup_s)
    return [*arguments, *([] if fraction is None else ["--set", f"generator.{KEY}={fraction}"])], {}


def _settings_of(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    known, _ = parser.parse_known_args(list(arguments))
    return load(known.config, known.sets)


def _read_status() -> StatusSnapshot:
    return StatusSnapshot.model_validate(ask("/v1/status"))


def take_as_learner(settings: Settings, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The learner's further arguments and environment; its share is taken by this process and what it becomes.

    ConfigError when learner and engine do not fit together.
    """
    here = settings.model_copy(update={"generator": settings.generator.model_copy(update={"count": 0})})
    memory = memory_of_run(here, place_parts(here))  # generators take the memory of another container
    _hold(folder / SHARE, None if memory is None else memory.memory_fraction)
    if memory is None:
        return [], {}
    mode = memory.recomputation
    arguments = [] if mode is None else ["--set", f"training.gradient_checkpointing={mode}"]
    share = memory.learner_share
    return arguments, {} if share is None else {launch_env.GPU_SHARE: str(share)}


def _hold(path: Path, memory_fraction: float | None) -> None:
    """Write the file and keep it locked; UnavailableError when another learner does not let go of it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    give_up_at = time.monotonic() + LET_GO_WITHIN_S
    while not durable.try_lock(handle):
        if time.monotonic() > give_up_at:
            os.close(handle)
            raise UnavailableError(
                "another learner uses the only GPU of this host", hint="stop it: a run has one learner"
            )
        time.sleep(LOOK_EVERY_S / 10)
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({KEY: memory_fraction}).encode())
    os.set_inheritable(handle, True)


def wait_as_generator(
    read_status: Callable[[], StatusSnapshot],
    folder: Path,
    *,
    deadline_s: float,
    every_s: float = LOOK_EVERY_S,
) -> float | None:
    """The engine's share of the GPU, once the learner has loaded; None: the GPU is not shared.

    A host where no learner has ever written its share has generators only.
    """
    give_up_at = time.monotonic() + deadline_s
    while time.monotonic() < give_up_at:
        if _learner_has_loaded(read_status):
            try:
                return _share_of_living(folder / SHARE)
            except FileNotFoundError:
                return None
            except BlockingIOError:
                pass  # a learner was here, and is not back yet
        time.sleep(every_s)
    raise DeadlineError(
        "the learner",
        "it shares the only GPU of this host, and the engine starts when it has loaded",
        deadline_s,
        hint="see the learner's log; where it has moved to another host, remove the volume `gpus`",
    )


def _learner_has_loaded(read_status: Callable[[], StatusSnapshot]) -> bool:
    with contextlib.suppress(OSError, ValueError):  # the services start
        status = read_status()
        return status.learner is not None and not status.learner_lost and has_loaded(status.learner.state)
    return False


def _share_of_living(path: Path) -> float | None:
    """What the learner has written; BlockingIOError when none holds the file, or it has not written yet."""
    held, written = durable.is_locked(path), path.read_bytes()
    if not held or not written:
        raise BlockingIOError
    share: float | None = json.loads(written)[KEY]
    return share
