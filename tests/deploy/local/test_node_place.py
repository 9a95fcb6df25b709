"""Which node of a learner a host is: as given, else as srun says; and which run it joins."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.load_settings import load
from deploy.local.node_place import place_of, run_id_of, slurm_place
from deploy.settings import Settings
from services.errors import ConfigError, DeadlineError
from services.net import free_port
from services.run_folder import RunFolder
from tests.support.endpoint import open_endpoint, served


def settings_of(*sets: str) -> Settings:
    return load(None, ["training.ranks=4", "training.nodes=2", *sets], environ={})


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, None),
        ({"SLURM_NNODES": "4", "SLURM_NODEID": "0"}, None),
        ({"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}, None),
        ({"SLURM_STEP_NUM_NODES": "4", "SLURM_NODEID": "3"}, (4, 3)),
        ({"SLURM_STEP_NUM_NODES": "four", "SLURM_NODEID": "3"}, None),
    ],
)
def test_srun_says_which_node_this_is(environ: dict[str, str], place: tuple[int, int] | None) -> None:
    """A batch script or a shell of an allocation is no step on several nodes."""
    assert slurm_place(environ) == place


@pytest.mark.parametrize(
    ("given", "slurm", "place"), [(None, None, 0), (1, None, 1), (None, (2, 1), 1), (0, (2, 1), 0)]
)
def test_a_flag_wins_over_srun(given: int | None, slurm: tuple[int, int] | None, place: int) -> None:
    assert place_of(settings_of(), given, slurm) == place


def test_a_place_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--node is 2, and training\.nodes is 2\n\nhint: number the nodes from 0 to 1"
    ):
        place_of(settings_of(), 2, None)
    with pytest.raises(ConfigError, match=r"training\.nodes is 2, srun started this on 4 nodes"):
        place_of(settings_of(), None, (4, 1))


def test_node_0_makes_the_folder_and_others_that_share_it_read_its_run(tmp_path: Path) -> None:
    settings = settings_of(f"run.dir={tmp_path / 'run'}")
    made = run_id_of(settings, 0)
    assert run_id_of(settings, 1) == made == RunFolder(tmp_path / "run").run_id


async def test_a_host_with_a_folder_of_its_own_asks_the_services(tmp_path: Path, redis_url: str) -> None:
    async with (
        open_endpoint(tmp_path / "of-node-0", redis_url, token="secret") as endpoint,
        served(endpoint.app) as url,
    ):
        settings = settings_of(f"run.dir={tmp_path / 'own'}", f"services.url={url}", "services.token=secret")
        assert await asyncio.to_thread(run_id_of, settings, 1) == endpoint.folder.run_id
    assert RunFolder(tmp_path / "own").run_id == endpoint.folder.run_id


def test_services_that_do_not_answer_are_named_at_the_deadline(tmp_path: Path) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    sets = (f"run.dir={tmp_path / 'own'}", f"services.url={where}", "deadlines.startup_s=0.2")
    with pytest.raises(DeadlineError, match=f"waited 0.2 s for the services at {where}: which run this is"):
        run_id_of(settings_of(*sets), 1)
