"""Whole runs of real processes: how old the weights behind a rollout may be, and a generator that joins meanwhile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from services.run_folder import RunFolder
from services.tensors import describe, read_safetensors, version_digest
from services.weights.mirror import MANIFEST_NAME
from services.weights.reader import WeightReader
from tests.support import scripted_run
from tests.support.scripted_run import finish, rollouts_of, sept

ROUNDS = 6


def world(folder: Path, *, max_staleness: int) -> tuple[Path, str]:
    """The config, and the --set that bounds its staleness; answers are long enough for a version to come amid them."""
    config = scripted_run.write(folder, rounds=ROUNDS, prompts_per_round=16, response_tokens=96, in_flight=4)
    return config, f"training.max_staleness={max_staleness}"


async def test_without_staleness_every_round_is_sampled_wholly_by_its_own_version(tmp_path: Path) -> None:
    config, staleness = world(tmp_path, max_staleness=0)
    assert await finish(await sept("run", config, "--set", staleness, "--set", "services.port=0")) == 0
    rollouts = rollouts_of(tmp_path / "run")
    assert {rollout["round"] for rollout in rollouts} == set(range(ROUNDS))
    for rollout in rollouts:
        assert rollout["spans"] == [[rollout["round"], 0, rollout["response_tokens"]]]
        assert rollout["staleness"] == 0
    folder = RunFolder(tmp_path / "run")
    newest = WeightReader(folder.weights, folder.run_id).manifest(ROUNDS)
    meta = json.loads(folder.checkpoint_of(ROUNDS).meta.read_text())
    assert (newest.epoch, meta["epoch"], folder.learner_epoch.read_text()) == (1, 1, "1\n"), "its learner was fenced"


async def test_staleness_stays_within_its_bound_while_answers_span_versions(tmp_path: Path) -> None:
    config, staleness = world(tmp_path, max_staleness=2)
    assert await finish(await sept("run", config, "--set", staleness, "--set", "services.port=0")) == 0
    rollouts = rollouts_of(tmp_path / "run")
    assert max(rollout["staleness"] for rollout in rollouts) in (1, 2)
    assert all(0 <= rollout["staleness"] <= 2 for rollout in rollouts)
    assert any(len(rollout["spans"]) > 1 for rollout in rollouts)


@pytest.mark.timeout(400)
async def test_a_generator_started_by_hand_joins_works_and_ends_with_the_published_bytes(tmp_path: Path) -> None:
    config, staleness = world(tmp_path, max_staleness=1)
    folder = RunFolder(tmp_path / "run")
    run = await sept(
        "run", config, "--set", staleness, "--set", "services.port=0", "--set", "generator.count=0", "--set",
        "training.rounds=3",
    )  # fmt: skip
    while not (folder.endpoints.exists() and folder.config.exists()):
        assert run.returncode is None, "the run ended before it was up"
        await asyncio.wait({asyncio.create_task(run.wait())}, timeout=0.1)
    guest = await sept("generator", "--config", folder.config, "--id", "guest")
    try:
        assert await finish(run) == 0
    finally:
        if guest.returncode is None:
            guest.terminate()
            await finish(guest)
    assert {rollout["generator_id"] for rollout in rollouts_of(folder.path)} == {"guest"}
    store = WeightReader(folder.weights, folder.run_id)
    model = folder.path / "mirrors" / "guest" / "model"
    held = json.loads((model / MANIFEST_NAME).read_text())["weight_version"]
    served = describe(read_safetensors(model / "model.safetensors"))
    assert version_digest(served) == store.manifest(held).digest
