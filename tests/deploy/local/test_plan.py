"""What the parts of a local run are started with: their commands, their environments, their share of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.load_settings import load
from deploy.local.plan import inherited_environment, plan_run
from deploy.placement import VISIBLE, place
from deploy.run_memory import EngineMemory, RunMemory
from deploy.settings import Settings
from learner.parallel.launch_env import GPU_SHARE
from services.net import free_port
from services.run_folder import RunFolder
from services.streams.embedded import EmbeddedRedis

ON_ONE = {"ranks": 1, "generators": 1, "tensor_parallel": 1}
ENGINE = EngineMemory(device=1, host=1, sequence=1)


def settings_of(*sets: str) -> Settings:
    return load(None, ["model.path=m", "data.path=d", *sets], environ={})


def test_parts_are_started_from_the_resolved_config_and_without_secrets_in_their_commands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    secrets = ("services.token=hush", "redis.url=redis://:secret@h:1")
    plan = plan_run(settings_of(*secrets), folder, None, 77, place([], 2, **ON_ONE))
    assert plan.redis is None
    assert plan.services.argv[-2:] == ("--set", "services.port=77")
    assert plan.generator(3).argv[-2:] == ("--id", "generator-3")
    for part in (plan.services, plan.learner, plan.generator(0)):
        assert str(folder.config) in part.argv
        assert part.log == folder.log_of(part.name)
        assert not {"secret", "hush"} & set(" ".join(part.argv).split())
        assert not any(name.startswith("SEPT_") and "__" in name for name in part.env)


def test_each_part_sees_its_own_gpus(tmp_path: Path) -> None:
    placement = place(list("012345"), 8, ranks=2, generators=2, tensor_parallel=2)
    plan = plan_run(settings_of(), RunFolder(tmp_path / "run").create(), None, 77, placement)
    assert [part.env[VISIBLE] for part in (plan.learner, plan.generator(0), plan.generator(1))] == ["0,1", "2,3", "4,5"]
    assert plan.generators_limit == 2


def test_what_follows_from_the_memory_reaches_the_part_that_it_is_for(tmp_path: Path) -> None:
    folder, placement = RunFolder(tmp_path / "run").create(), place(["0"], 8, **ON_ONE)
    memory = RunMemory(None, ENGINE, 1, None, recomputation="full", memory_fraction=0.375, learner_share=0.25)
    plan = plan_run(settings_of(), folder, None, 77, placement, memory)
    assert plan.learner.argv[-2:] == ("--set", "training.gradient_checkpointing=full")
    assert plan.learner.env[GPU_SHARE] == "0.25"
    assert plan.generator(0).argv[-4:] == ("--id", "generator-0", "--set", "generator.memory_fraction=0.375")
    assert GPU_SHARE not in plan.generator(0).env
    assert plan.one_after_the_other, "an engine measures the memory that is free"
    unknown = plan_run(settings_of(), folder, None, 77, placement)
    assert GPU_SHARE not in unknown.learner.env
    assert "--set" not in (*unknown.learner.argv, *unknown.generator(0).argv)
    apart = plan_run(settings_of(), folder, None, 77, place(["0", "1"], 8, **ON_ONE))
    assert not apart.one_after_the_other


def test_a_redis_of_the_run_s_own_is_started_and_mended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    server = EmbeddedRedis(folder.redis, free_port(), "correct-horse-battery")
    plan = plan_run(settings_of("generator.count=3"), folder, server, 77, place([], 2, **ON_ONE), leader="evaluator")
    assert plan.redis is not None
    assert plan.redis.argv == tuple(server.command())
    assert "battery" not in " ".join(plan.redis.argv)
    assert plan.redis.mend == server.set_aside_damaged
    assert (plan.learner.name, plan.generators_target) == ("evaluator", 3)
    assert "evaluator" in plan.learner.argv


def test_parts_inherit_everything_but_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEPT_SERVICES__TOKEN", "SEPT_LOG", "HF_HOME", "A__B"):
        monkeypatch.setenv(name, "x")
    found = inherited_environment()
    assert {name for name in ("SEPT_SERVICES__TOKEN", "SEPT_LOG", "HF_HOME", "A__B") if name in found} == {
        "SEPT_LOG", "HF_HOME", "A__B"
    }  # fmt: skip
