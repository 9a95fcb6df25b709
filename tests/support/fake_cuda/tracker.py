"""Counts what operators on fake CUDA tensors allocate, move, copy and wait for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.fsdp._fully_shard._fsdp_param as fsdp_param
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""Bytes: CUDA's allocator rounds up to multiples of them."""
REAL_ELEMENTS = 1 << 20
"""A copy to the host of at most so many elements becomes real zeros, so that the host can compute with them."""

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2)}
"""Matrix products and where their factors stand."""
ATTENTION = "_varlen_attn"
FREE = (
    *("prim::device", "aten::lift_fresh", "aten::empty", "aten::set_", "aten::resize", "aten::detach", "aten::alias"),
    *("aten::_unsafe_view", "aten::unbind", "aten::split", "aten::_local_scalar", "aten::new_empty"),
)
"""Operators that move nothing."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within its block every operator is seen. Put it inside a FakeTensorMode.

    with FakeTensorMode(allow_non_fake_inputs=True), Tracker() as tracker:
        ...
        tracker.peak      most bytes alive at once on the device
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes alive on the device."""
        self.peak = 0
        self.peak_operator = ""
        """The operator that made the peak."""
        self.items = 0
        """Numbers that the host waited for (`.item()`, float(), bool())."""
        self.host_to_device = 0
        self.device_to_host = 0
        self.device_to_host_bytes = 0
        self.launches = 0
        self.flops = 0
        self.attention_calls = 0
        self.moved: Counter[str] = Counter()
        """Bytes read and written by each operator that is neither a matrix product nor attention."""
        self.product_bytes = 0
        self._storages: dict[int, tuple[int, Any]] = {}

    def start_peak(self) -> None:
        """The peak begins again from what is alive now."""
        self.peak = self.live

    def watch(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage from now until it is freed."""
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device.type == "cuda" and key not in self._storages:
            self._storages[key] = (0, weakref.ref(storage, lambda _: self._resize(key, None)))
            self._resize(key, storage.nbytes())

    def _resize(self, key: int, nbytes: int | None) -> None:
        """A storage has this size now; None: it is gone."""
        if key not in self._storages:
            return
        before, reference = self._storages.pop(key)
        after = -(-(nbytes or 0) // BLOCK) * BLOCK
        if nbytes is not None:
            self._storages[key] = (after, reference)
        self.live += after - before
        if self.live > self.peak:
            self.peak, self.peak_operator = self.live, self._running

    _running = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        name = self._running = func.name()
        if func is torch.ops.aten._local_scalar_dense.default:
            self.items += args[0].device.type == "cuda"
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if (
            func is not torch.ops.aten.empty_strided.default
        ):  # DTensor's: how it finds the shapes of an operator's result
            for tensor in outputs:
                self.watch(tensor)
        devices = {tensor.device.type for tensor in inputs}, {tensor.device.type for tensor in outputs}
        if "cuda" not in devices[0] | devices[1]:
            return out
        if "cpu" in devices[0] and "cuda" in devices[1] and len(inputs) == 1:
            self.host_to_device += 1
        if "cuda" in devices[0] and "cpu" in devices[1]:
            return self._to_host(out)
        if not (func.is_view or name.startswith(FREE)):
            self._count(name, args, sum(map(_bytes, inputs + outputs)))
        return out

    def _to_host(self, out: Any) -> Any:
        self.device_to_host += 1
        self.device_to_host_bytes += _bytes(out)
        if out.numel() > REAL_ELEMENTS:
            return out
        with _disable_current_modes():
            return torch.zeros(out.shape, dtype=out.dtype)

    def _count(self, name: str, args: Any, nbytes: int) -> None:
        self.launches += 1
        product = PRODUCTS.get(name.removeprefix("aten::").split(".")[0])
        if product is not None:
            left, right = (args[index] for index in product)
            self.flops += 2 * left.numel() * right.shape[-1]
            self.product_bytes += nbytes
        elif ATTENTION in name:
            self.attention_calls += "backward" not in name
        else:
            self.moved[name] += nbytes

    @contextmanager
    def following_fsdp(self) -> Iterator[None]:
        """FSDP frees and allocates storages without an operator: follow it within the block."""
        module: Any = fsdp_param
        allocate, free = module.alloc_storage, module.free_storage

        def watched(change: Any) -> Any:
            def changed(tensor: torch.Tensor) -> None:
                change(tensor)
                storage = tensor.untyped_storage()
                self.watch(tensor)
                self._resize(storage._cdata, storage.nbytes())

            return changed

        module.alloc_storage, module.free_storage = watched(allocate), watched(free)
        try:
            yield
        finally:
            module.alloc_storage, module.free_storage = allocate, free


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
