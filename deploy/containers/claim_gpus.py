"""Gives a container GPUs that no other container of the same host uses, then becomes its command.

Compose gives every replica of a service the same devices. So each container sees all of them and takes the first that
are free: an exclusive lock on one file a GPU in a folder that the containers share. The operating system releases the
lock when the process ends in whatever way. The only GPU of a host is shared by the learner and one generator
(`shared_gpu`).

    python3 -P -m deploy.containers.claim_gpus generator --config run.toml  # becomes: sept generator --config run.toml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy import exit_codes, placement
from services import durable
from services.errors import ConfigError, SeptError, UnavailableError

FOLDER = Path("/sept/gpus")


def claim(gpus: Sequence[str], count: int, folder: Path = FOLDER) -> list[str]:
    """The first `count` GPUs that nobody holds, held by this process and what it becomes from now on.

    UnavailableError when others hold too many.
    """
    held: dict[str, int] = {}
    for gpu in gpus:
        if len(held) == count:
            break
        handle = os.open(folder / f"gpu-{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        if durable.try_lock(handle):
            held[gpu] = handle
        else:
            os.close(handle)
    if len(held) < count:
        for handle in held.values():
            os.close(handle)
        raise UnavailableError(
            f"{count} GPUs are asked for, {len(held)} of {len(gpus)} are free",
            hint="scale to fewer generators: the learner takes training.ranks GPUs, each generator its own",
        )
    for handle in held.values():
        os.set_inheritable(handle, True)
    return list(held)


def prepare(
    arguments: Sequence[str], gpus: Sequence[str], count: int, folder: Path = FOLDER
) -> tuple[list[str], dict[str, str]]:
    """The arguments of `sept` and what the environment gets besides, for a part that computes on so many GPUs.

    ConfigError when there are fewer or the run does not fit on the only one, UnavailableError when others hold them.
    """
    if count > len(gpus):
        raise ConfigError(
            f"{count} GPUs are asked for, this container sees {len(gpus)}",
            hint="lower training.ranks or generator.tensor_parallel, or install the NVIDIA container toolkit",
        )
    if len(gpus) > 1:
        return list(arguments), {placement.VISIBLE: ",".join(claim(gpus, count, folder))}
    from deploy.containers.shared_gpu import join  # imports what a part with a GPU of its own does not need

    if arguments[0] != "learner":
        claim(gpus, count, folder)  # from other generators
    return join(arguments, folder)


def main() -> None:
    """Prepare as many as SEPT_GPUS says, if it is set, then exec `sept` with the arguments given."""
    arguments, gpus, count = sys.argv[1:], placement.visible_gpus(), os.environ.get("SEPT_GPUS")
    if gpus and count is not None:
        try:
            arguments, environment = prepare(arguments, gpus, int(count))
        except SeptError as error:
            sys.stderr.write(f"sept: {error}\n")
            sys.exit(exit_codes.code_of(error))
        os.environ |= environment
    os.execvp("sept", ["sept", *arguments])  # noqa: S606 - an argument list, and nothing comes after


if __name__ == "__main__":
    main()
