"""A whole run of real processes goes back to a version: its generators follow, and its rounds are each trained once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.operate.run_commands import client_of
from services.run_folder import RunFolder
from services.weights.reader import WeightReader
from tests.support import scripted_run
from tests.support.scripted_run import finish, rollouts_of, sept

ROUNDS, PROMPTS = 8, 16
DEADLINE_S = 120.0


@pytest.mark.timeout(400)
async def test_a_run_with_generators_ahead_goes_back_and_ends_whole(tmp_path: Path) -> None:
    config = scripted_run.write(tmp_path, rounds=ROUNDS, prompts_per_round=PROMPTS, response_tokens=96, in_flight=4)
    folder = RunFolder(tmp_path / "run")
    run = await sept(
        "run", config, "--set", "services.port=0", "--set", "generator.count=2", "--set", "training.max_staleness=2",
        "--set", "checkpoint.keep=3",
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (folder.endpoints.exists() and len(list(folder.rounds())) >= 4):
                assert run.returncode is None, "the run ended before it was asked"
                await asyncio.wait({asyncio.create_task(run.wait())}, timeout=0.05)
            async with client_of(folder) as client:
                await client.roll_back(folder.checkpointed()[-2])
    finally:
        code = await finish(run)
    assert code == 0
    assert "rolled_back" in (folder.logs / "learner.log").read_text()
    assert [metrics.round for metrics in folder.rounds()] == list(range(ROUNDS))
    rollouts = rollouts_of(folder.path)
    assert len(rollouts) == len({rollout["rollout_id"] for rollout in rollouts}) == ROUNDS * PROMPTS
    for rollout in rollouts:
        assert 0 <= rollout["staleness"] <= 2
        assert rollout["spans"][-1][0] <= rollout["round"], "no round is sampled by its own future"
    store = WeightReader(folder.weights, folder.run_id)
    assert store.versions() == list(range(ROUNDS + 1))
    assert store.load(ROUNDS), "the chain of deltas holds together"
