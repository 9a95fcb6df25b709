"""Writes changed elements of weights into a loaded model in place, where its layers keep their weights as loaded.

Where an element of a checkpoint's tensor lies in the model (fused, or on one of several devices) only its own loader
knows. So the loader is run once with tensors that have shapes and no values, and what it would copy to where is noted.
A patch then takes the memory of one piece, whatever the size of the tensor and of the change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

PIECE_ELEMENTS = 1 << 22
"""Patched at once: positions, coordinates, masks and values take up to 64 bytes for each on the device, 256 MiB."""

CHECKED_ELEMENTS = 64
"""Of each tensor, compared with the checkpoint to tell whether a layer keeps it as loaded."""

PLAIN_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""vLLM's methods that compute with the weights as loaded, on GPUs; every other one may shuffle or quantise them."""

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type in the checkpoint of tensors by name."""


class NotPatchableError(Exception):
    """The model's loader does something else with a tensor than to copy a part of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A block of a checkpoint's tensor, and the part of a parameter that holds it."""

    first: tuple[int, ...]
    """Coordinates in the checkpoint's tensor of the block's first element."""
    target: torch.Tensor
    """The part of the parameter, of the block's shape."""


class PatchPlan:
    """Where the model keeps the tensors that its loader was asked about."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[Place]] = {}

    def locate(self, shapes: Shapes) -> None:
        """Ask the loader about those of the tensors that it was not asked about yet; NotPatchableError if it fails."""
        missing = {name: shape for name, shape in shapes.items() if name not in self._places}
        if missing:
            self._places |= _places(self._model, missing)
            self._shapes |= {name: shape for name, (shape, _) in missing.items()}

    def forget(self) -> None:
        """The model's parameters may have moved: ask again."""
        self._places.clear()

    def places(self, name: str) -> list[Place]:
        """Where this rank holds the tensor; none where another rank does."""
        return self._places[name]

    def patch(self, name: str, positions: torch.Tensor, values: torch.Tensor) -> None:
        """Write values [N] at flat positions [N] of the tensor, ascending; both may be in host memory."""
        for place in self._places[name]:
            start, stop = 0, 1
            if place.first:
                row = math.prod(self._shapes[name][1:])
                ends = torch.tensor([place.first[0] * row, (place.first[0] + place.target.shape[0]) * row])
                start, stop = torch.searchsorted(positions, ends.to(positions)).tolist()
            for at in range(start, stop, PIECE_ELEMENTS):
                piece = slice(at, min(at + PIECE_ELEMENTS, stop))
                _write(place, self._shapes[name], positions[piece], values[piece])

    def replace(self, name: str, tensor: torch.Tensor) -> None:
        """Write the whole tensor, which may be in host memory."""
        for place in self._places[name]:
            block = tuple(slice(a, a + size) for a, size in zip(place.first, place.target.shape, strict=True))
            place.target.copy_(tensor[block])


def patchable(model: nn.Module, plan: PatchPlan, checkpoint: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the checkpoint's tensors, which the model was loaded from, that it keeps as they are.

    Layers that vLLM processes after loading are left out by their methods, and whatever else differs from the
    checkpoint by its values.
    """
    try:
        plan.locate({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in checkpoint.items()})
    except NotPatchableError:
        return set()
    kept = _storages_kept_as_loaded(model)
    names = set()
    for name, tensor in checkpoint.items():
        places = plan.places(name)
        storages = {place.target.untyped_storage()._cdata for place in places}
        if storages <= kept and all(_agrees(place, tensor) for place in places):
            names.add(name)
    return names


def _storages_kept_as_loaded(model: nn.Module) -> set[int]:
    """Storages of the parameters that no layer processes, and from which nothing else is derived."""
    processing = [module for module in model.modules() if hasattr(module, "process_weights_after_loading")]
    derived = {id(part) for module in processing for part in module.modules()}
    kept: set[int] = set()
    changed: set[int] = set()
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        plain = id(module) not in derived and (method is None or type(method) in PLAIN_METHODS)
        for parameter in module.parameters(recurse=False):
            (kept if plain else changed).add(parameter.untyped_storage()._cdata)
    return kept - changed


def _agrees(place: Place, tensor: torch.Tensor) -> bool:
    """Whether elements all over the place are those of the checkpoint's tensor."""
    count = place.target.numel()
    if not count:
        return True
    chosen = torch.linspace(0, count - 1, min(count, CHECKED_ELEMENTS), dtype=torch.float64).long()
    coordinates = torch.unravel_index(chosen, place.target.shape) if place.target.ndim else ()
    expected = tensor[tuple(c + first for c, first in zip(coordinates, place.first, strict=True))]
    found = place.target[tuple(c.to(place.target.device) for c in coordinates)]
    return torch.equal(found.cpu(), expected.to(place.target.dtype).view(found.shape))


class _Recorder(TorchDispatchMode):
    """Within its block, copies from the watched tensors, which have no values, are noted instead of made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched: dict[int, tuple[str, torch.Tensor]] = {}
        self.places: dict[str, list[Place]] = defaultdict(list)

    def watch(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Keeps the tensor alive: what is noted is told by its storage."""
        self._watched[tensor.untyped_storage()._cdata] = name, tensor
        self.places[name] = []
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            target, source = args[:2]
            if (known := self._watched.get(source.untyped_storage()._cdata)) is not None:
                name, whole = known
                self.places[name].append(Place(_first(source, whole, target), target))
                return target
        return func(*args, **(kwargs or {}))


def _first(source: torch.Tensor, whole: torch.Tensor, target: torch.Tensor) -> tuple[int, ...]:
    """Coordinates of a block's first element; NotPatchableError unless it is a block and fits its target."""
    if source.shape != target.shape or source.stride() != whole.stride():
        raise NotPatchableError(f"the loader reshapes a block of {tuple(whole.shape)}")
    coordinates, left = [], source.storage_offset()
    for stride in whole.stride():
        coordinates.append(left // stride)
        left %= stride
    return tuple(coordinates)


def _places(model: nn.Module, shapes: Shapes) -> dict[str, list[Place]]:
    recorder = _Recorder()
    weights = [
        (name, recorder.watch(name, torch.empty(shape, dtype=dtype, device="meta")))
        for name, (shape, dtype) in shapes.items()
    ]
    loader: Any = model
    try:
        with torch.no_grad(), recorder:
            loader.load_weights(iter(weights))
    except NotPatchableError:
        raise
    except Exception as error:  # whatever a loader does with a tensor that has no values
        raise NotPatchableError(f"the model's loader does not merely copy: {error}") from error
    return dict(recorder.places)


def _write(place: Place, shape: tuple[int, ...], positions: torch.Tensor, values: torch.Tensor) -> None:
    """Write one piece, whose positions lie in the place's rows."""
    target, device = place.target, place.target.device
    flat, new = positions.to(device).long(), values.to(device, target.dtype)
    if target.is_contiguous() and target.shape[1:] == shape[1:]:
        target.view(-1)[flat - (place.first[0] * math.prod(shape[1:]) if shape else 0)] = new
        return
    coordinates = list(_coordinates(flat, shape))
    inside = None
    for axis in range(1, len(shape)):
        if target.shape[axis] != shape[axis]:
            local = coordinates[axis] - place.first[axis]
            held = (local >= 0) & (local < target.shape[axis])
            inside = held if inside is None else inside & held
    shifted = [each - first for each, first in zip(coordinates, place.first, strict=True)]
    if inside is not None:
        shifted, new = [each[inside] for each in shifted], new[inside]
    target[tuple(shifted)] = new


def _coordinates(flat: torch.Tensor, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    for axis in range(len(shape)):
        behind = math.prod(shape[axis + 1 :])
        yield flat // behind % shape[axis] if axis else flat // behind
