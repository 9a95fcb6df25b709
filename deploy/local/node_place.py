"""Which node of a learner this host is, and the run that it belongs to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

from deploy.endpoints import Endpoints
from deploy.operate.client import RunClient
from deploy.settings import Settings, services_url, token_of
from services.errors import ConfigError, ContractError, DeadlineError, UnavailableError
from services.run_folder import RunFolder

ASK_EVERY_S = 1.0


def slurm_place(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(nodes, this node) when srun started this process on each of several nodes; None otherwise."""
    nodes, node = environ.get("SLURM_STEP_NUM_NODES", "1"), environ.get("SLURM_NODEID", "0")
    return (int(nodes), int(node)) if nodes.isdigit() and node.isdigit() and int(nodes) > 1 else None


def place_of(settings: Settings, node: int | None, slurm: tuple[int, int] | None) -> int:
    """This host's number among training.nodes: as given, else as srun says, else 0; ConfigError for another one."""
    nodes = settings.training.nodes
    if slurm is not None and slurm[0] != nodes:
        raise ConfigError(
            f"training.nodes is {nodes}, srun started this on {slurm[0]} nodes",
            hint=f"set training.nodes to {slurm[0]}, or start with srun --nodes={nodes}",
        )
    found = node if node is not None else slurm[1] if slurm is not None else 0
    if not 0 <= found < nodes:
        raise ConfigError(
            f"--node is {found}, and training.nodes is {nodes}", hint=f"number the nodes from 0 to {nodes - 1}"
        )
    return found


def run_id_of(settings: Settings, node: int) -> str:
    """The run that is trained; a folder on another disk than node 0's gets its identity from the services.

    Raises DeadlineError when they do not answer within deadlines.startup_s.
    """
    folder = RunFolder(settings.run.dir)
    if node != 0 and not folder.identity.exists():
        folder.create(asyncio.run(_ask_run_id(settings)))
    return folder.create().run_id


async def _ask_run_id(settings: Settings) -> str:
    where, deadline_s = services_url(settings), settings.deadlines.startup_s
    give_up_at = time.monotonic() + deadline_s
    async with RunClient(Endpoints(redis_url="", services_url=where, token=token_of(settings))) as client:
        while True:
            try:
                return (await client.status()).run_id
            except (UnavailableError, ContractError) as error:
                if time.monotonic() >= give_up_at:
                    raise DeadlineError(
                        f"the services at {where}",
                        f"which run this is ({error.message})",
                        deadline_s,
                        hint=f"start the run on node 0, and set services.url and services.token here; or share the "
                        f"folder {settings.run.dir}",
                    ) from error
                await asyncio.sleep(ASK_EVERY_S)
