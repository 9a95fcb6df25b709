"""The processes of a local run: their commands, and what of the machine each of them gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from deploy.local.processes import ProcessSpec
from deploy.local.supervisor import RunPlan
from deploy.placement import Placement
from deploy.run_memory import RunMemory
from deploy.same_code import sept_command, with_same_code
from deploy.settings import ENV_DELIMITER, ENV_PREFIX, Settings
from learner.parallel import launch_env
from services.run_folder import RunFolder
from services.streams.embedded import EmbeddedRedis


def plan_run(
    settings: Settings,
    folder: RunFolder,
    redis: EmbeddedRedis | None,
    services_port: int,
    placement: Placement,
    memory: RunMemory | None = None,
    *,
    leader: str = "learner",
) -> RunPlan:
    """The commands of all parts, each with its log and its share of the machine; `memory` None: not known."""

    def part(name: str, command: tuple[str, ...], env: Mapping[str, str]) -> ProcessSpec:
        return ProcessSpec(name, command, folder.log_of(name), {**inherited_environment(), **env})

    def sept(command: str, *more: str, **sets: object) -> tuple[str, ...]:
        given = [f"{key.replace('__', '.')}={value}" for key, value in sets.items() if value is not None]
        return sept_command(
            command, "--config", str(folder.config), *more, *(word for text in given for word in ("--set", text))
        )

    def generator(index: int) -> ProcessSpec:
        name = f"generator-{index}"
        fraction = memory.memory_fraction if memory is not None else None
        command = sept("generator", "--id", name, generator__memory_fraction=fraction)
        return part(name, command, placement.generator_env(index))

    mode = memory.recomputation if memory is not None else None
    share = {} if memory is None or memory.learner_share is None else {launch_env.GPU_SHARE: str(memory.learner_share)}
    return RunPlan(
        redis=None
        if redis is None
        else replace(part("redis", tuple(redis.command()), {}), mend=redis.set_aside_damaged),
        services=part("services", sept("services", services__port=services_port), {}),
        learner=part(leader, sept(leader, training__gradient_checkpointing=mode), {**placement.learner_env(), **share}),
        generator=generator,
        generators_target=settings.generator.count,
        generators_limit=placement.generators_limit,
        one_after_the_other=placement.shared,
    )


def inherited_environment() -> dict[str, str]:
    """This process's environment without settings: the resolved config holds them, those of --set too."""
    return with_same_code(
        {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith(ENV_PREFIX) and ENV_DELIMITER in name)
        }
    )
