"""Reads scenarios as JSON from standard input and writes their measurements, a line of JSON each.

    echo '[{"model": "7b", "ranks": 4, "gradient_checkpointing": "full"}]' | python -m tests.support.fake_cuda

A model is the fields of its config.json, or the name of one in `scenario.SHAPES`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict

from tests.support.fake_cuda import device
from tests.support.fake_cuda.scenario import SHAPES, Scenario


def main() -> None:
    device.install()
    from tests.support.fake_cuda.step import measure

    for fields in json.load(sys.stdin):
        if isinstance(fields["model"], str):
            fields["model"] = SHAPES[fields["model"]]
        with contextlib.redirect_stdout(sys.stderr):  # where the log goes
            measured = measure(Scenario(**fields))
        print(json.dumps(asdict(measured)), flush=True)  # noqa: T201 - what this program is for


if __name__ == "__main__":
    main()
