"""What publishing an update moves from fake CUDA devices to the host. Reads scenarios as JSON from standard input.

echo '[{"model": "7b", "ranks": 4, "changed": 0.0025}]' | python -m tests.support.fake_cuda.publishing
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.support.fake_cuda import device
from tests.support.fake_cuda.runs import DEADLINE_S, ROOT
from tests.support.fake_cuda.scenario import SHAPES, Scenario


def measure_publishing(model: str, ranks: Sequence[int], changed: float) -> list[dict[str, int]]:
    """One measurement per number of ranks, from a process of its own; `changed`: share of the weights."""
    scenarios = [{"model": model, "ranks": each, "changed": changed} for each in ranks]
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_cuda.publishing"],
        input=json.dumps(scenarios),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE_S,
    )
    assert run.returncode == 0, run.stderr
    measured: list[dict[str, int]] = json.loads(run.stdout)
    return measured


def _measure(scenario: Scenario, changed: float) -> dict[str, int]:
    """Rank 0's second publication, of which `changed` of every tensor's elements differ from the first."""
    import numpy as np
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _disable_current_modes

    from learner.model import wire_tensors
    from learner.parallel import published_shards
    from learner.parallel.sharding import own_part
    from tests.support.fake_cuda.step import load, process_group
    from tests.support.fake_cuda.tracker import Tracker

    def some(values: Any) -> Any:
        """Positions of a share of the values: fake tensors have none to look at."""
        return torch.empty(int(values.numel() * changed), dtype=torch.int64, device=values.device)

    def ascending(values: Any) -> Any:
        kind = torch.empty(0, dtype=values.dtype, device="cpu").element_size()
        return np.arange(values.numel()).astype(f"<u{kind}")

    replaced: Any = published_shards
    replaced.nonzero, replaced.as_array = some, ascending
    tracker = Tracker()
    with process_group(scenario.ranks), FakeTensorMode(allow_non_fake_inputs=True):
        model = load(scenario)
        elements = 0
        for name, tensor in wire_tensors._checkpoint_tensors(model):
            part = own_part(tensor.detach().to(torch.bfloat16), is_leader=True)
            assert part is not None
            model.published.keep(name, part[0])
            elements += part[0].numel()
        model.ranks.size = 1  # the exchange between ranks is in host memory
        with tracker:
            for tensor in [*model.module.parameters(), *model.published.shards()]:
                tracker.watch(tensor)
            tracker.start_peak()
            before = tracker.live
            with torch.no_grad():
                flips = wire_tensors.wire_changes(model)
    with _disable_current_modes():
        sent = sum(each.positions.size for each in flips)
    return {
        "elements": elements,
        "changed": sent,
        "copies": tracker.device_to_host,
        "copied_bytes": tracker.device_to_host_bytes,
        "items": tracker.items,
        "extra_peak_bytes": tracker.peak - before,
    }


def main() -> None:
    device.install()
    measured = []
    for fields in json.load(sys.stdin):
        changed = fields.pop("changed")
        fields["model"] = SHAPES[fields["model"]]
        with contextlib.redirect_stdout(sys.stderr):
            measured.append(_measure(Scenario(**fields), changed))
    json.dump(measured, sys.stdout)


if __name__ == "__main__":
    main()
