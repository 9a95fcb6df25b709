"""Why vLLM does not start: the first error in any of its processes, and what kind of error it is to us.

What vLLM raises says that something failed in another process, whose log says what. So those processes also log to a
file (`logging_config`), from which `start_error` reads it.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from vllm.config.logging import LoggingConfig
from vllm.logger import DEFAULT_LOGGING_CONFIG

from services.errors import ConfigError, EngineError, ModelError, SeptError

CAUSES = "causes.jsonl"
"""Name of the file with the errors, one a line."""

_LACKS = re.compile(
    r"out of memory|allocate memory|free memory on device|no space left|cuda error|nccl|address already in use", re.I
)
"""In errors that say something of this machine at this time, and nothing of the model."""
_LACKING_TYPES = ("MemoryError", "OutOfMemoryError", "AcceleratorError", "ConnectionError", "TimeoutError")
_CACHE = re.compile(r"kv cache|cache blocks", re.I)


class Cause(NamedTuple):
    """An error in one of vLLM's processes."""

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class CauseLog(logging.Handler):
    """Appends the cause of every logged exception to a file."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = Path(path)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cause_of(record.exc_info[1])) + "\n")


def logging_config(folder: Path) -> LoggingConfig:
    """vLLM's own logging, and a `CauseLog` in the folder, for every process of an engine."""
    level = LoggingConfig().log_level
    config = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
    config["handlers"]["vllm"] |= {"level": level, "stream": "ext://sys.stderr"}
    config["handlers"]["causes"] = {"()": f"{__name__}.{CauseLog.__name__}", "path": str(folder / CAUSES)}
    config["loggers"]["vllm"] |= {"level": level, "handlers": ["vllm", "causes"]}
    for formatter in config["formatters"].values():
        formatter["log_level"] = level
    path = folder / "logging.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return LoggingConfig(pylogging_config_file=str(path))


def cause_of(error: BaseException) -> Cause:
    """The first of the errors that led to this one, without what pydantic writes around it."""
    while (earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = earlier
    if isinstance(error, ValidationError):
        message = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        return Cause("ValueError", message)
    return Cause(type(error).__name__, str(error))


def start_error(error: Exception, model: str, folder: Path, *, cpu: bool) -> SeptError:
    """What `error` at the start of an engine for `model` means; `folder` is the one of `logging_config`.

    ModelError and ConfigError would come again, EngineError might not.
    """
    logged = folder / CAUSES
    lines = logged.read_text(encoding="utf-8").splitlines() if logged.exists() else []
    cause = Cause(*json.loads(lines[0])) if lines else cause_of(error)
    if cpu and _CACHE.search(cause.message):
        return ConfigError(
            f"vLLM's KV cache is too small: {cause.message}",
            hint="raise generator.cpu_cache_gib, or lower data.max_prompt_tokens or sampling.max_response_tokens",
        )
    if cause.type in _LACKING_TYPES or _LACKS.search(cause.message) or _CACHE.search(cause.message):
        return EngineError(
            f"vLLM did not start from {model}: {cause}",
            hint="free memory on this machine or device, raise or lower generator.memory_fraction, or lower "
            "data.max_prompt_tokens and sampling.max_response_tokens",
        )
    return ModelError(
        f"vLLM cannot serve {model}: {cause}",
        hint="train a model that vLLM serves here, with sequences as long as it allows (docs/families.md)",
    )
