"""Makes this process believe in CUDA devices. Call `install` before anything imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILER = "g++"
CAPABILITY = (9, 0)
"""Of the device: that of an H100."""


def has_compiler() -> bool:
    """Whether the guard can be built here."""
    return shutil.which(COMPILER) is not None


def install() -> None:
    """Load the guard, import torch and let it take a CUDA device for granted."""
    assert "torch" not in sys.modules, "torch looks for the hooks of CUDA when it is imported"
    ctypes.CDLL(str(_built_guard()), mode=ctypes.RTLD_GLOBAL)
    _adapt_torch()


def _built_guard() -> Path:
    """The guard for the installed torch, built once per machine (2 s)."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    key = hashlib.sha256(f"{version('torch')} {root}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sept-fake-cuda" / f"guard-{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        partial = built.with_suffix(f".{os.getpid()}")
        headers = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        libraries = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-lc10", "-ltorch_cpu"]
        options = ["-O1", "-shared", "-fPIC", "-std=c++20"]
        subprocess.run([COMPILER, *options, *headers, str(SOURCE), "-o", str(partial), *libraries], check=True)
        partial.replace(built)
    return built


class _Event:
    """Of a stream on which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream(contextlib.AbstractContextManager[None]):
    stream_id = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def query(self) -> bool:
        return True


WHOLE = ("silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward")
"""Operators that are one kernel on a GPU."""

_KEPT: list[Any] = []
"""Registrations, which end with the object that made them."""


def _never_called(*_: Any) -> Any:
    raise NotImplementedError("fake tensors call no kernels")


def _adapt_torch() -> None:
    """Replace what torch's Python asks CUDA's runtime, which is not there."""
    import torch

    torch.set_num_threads(1)
    # Backward on threads of its own would leave the tracker, which belongs to this thread.
    torch.autograd.set_multithreading_enabled(False)
    only = _Stream()
    cuda: Any = torch.cuda
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_, **__: CAPABILITY,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "current_stream": lambda *_: only,
        "stream": lambda _: contextlib.nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    # A build for CPU has no kernels of their own for these on CUDA and would take them apart, which a GPU does not.
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for operator in WHOLE:
        library.impl(operator, _never_called, "CUDA")
    _KEPT.append(library)
    cuda.amp.common.amp_definitely_not_available = lambda: False
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda *_: None
    tensor.pin_memory = lambda self, *_, **__: self
