"""The weight transfer of a worker, without the worker: patches from a file into a model with a fused layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.vllm_models import changed, first_tensors, update_between

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def bits_of(fused: object, other: object) -> dict[str, bytes]:
    import torch

    assert isinstance(fused, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    parts = {"q.weight": fused[:6], "k.weight": fused[6:], "o.weight": other}
    return {name: part.contiguous().view(torch.uint8).numpy().tobytes() for name, part in parts.items()}


def test_patches_change_the_parameters_in_place_to_the_bit(tmp_path: Path) -> None:
    import torch

    from generator.engines.vllm.update_file import write_update
    from generator.engines.vllm.worker import FileWeightTransfer

    class Model(torch.nn.Module):
        """q and k share one parameter, as in vLLM's attention layers."""

        def __init__(self) -> None:
            super().__init__()
            self.fused = torch.nn.Parameter(torch.empty(12, 4, dtype=torch.bfloat16), requires_grad=False)
            self.other = torch.nn.Parameter(torch.empty(6, 4, dtype=torch.bfloat16), requires_grad=False)

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            slots = {"q.weight": self.fused[:6], "k.weight": self.fused[6:], "o.weight": self.other}
            return {name for name, weight in weights if slots[name].copy_(weight) is not None}

    old = first_tensors()
    model = Model()
    model.load_weights(
        (name, torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=torch.bfloat16).view(tensor.shape))
        for name, tensor in old.items()
    )
    addresses = model.fused.data_ptr(), model.other.data_ptr()
    vllm_config = SimpleNamespace(parallel_config=None, model_config=None)
    engine = FileWeightTransfer(None, vllm_config, torch.device("cpu"), model)

    new = changed(old, seed=1, share=0.3)
    update = update_between(1, old, new)
    request = write_update(update, tmp_path / "update", patchable=update.tensors)
    assert request.update_info["patched_shapes"]
    engine.receive_weights(engine.parse_update_info(request.update_info))

    assert bits_of(model.fused, model.other) == {name: tensor.data.tobytes() for name, tensor in new.items()}
    assert (model.fused.data_ptr(), model.other.data_ptr()) == addresses
