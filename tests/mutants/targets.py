"""The modules that carry the promises, and the tests that are asked to notice a mistake in each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True, slots=True)
class Target:
    """One module and its tests, as paths from the project's root."""

    module: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """`services/streams/tasks.py` -> `services.streams.tasks`."""
        return self.module.removesuffix(".py").replace("/", ".")


ALSO: dict[str, tuple[str, ...]] = {
    "deploy/load_settings.py": ("tests/deploy/test_settings.py",),
    "deploy/local/supervisor.py": ("tests/deploy/local/test_supervised_part.py",),
    "generator/config.py": ("tests/deploy/test_settings.py", "tests/deploy/test_load_settings.py"),
    "learner/algorithms/grpo.py": ("tests/learner/training/test_trainer.py", "tests/learner/grading/test_signals.py"),
    "learner/algorithms/nll.py": ("tests/learner/training/test_trainer.py",),
    "learner/algorithms/entropy.py": ("tests/learner/training/test_trainer.py",),
    "learner/config.py": ("tests/deploy/test_settings.py", "tests/deploy/test_load_settings.py"),
    "learner/data/curriculum.py": ("tests/learner/test_recipes.py",),
    "learner/training/batch_sharding.py": ("tests/learner/training/test_trainer.py",),
    "learner/training/checkpoint.py": ("tests/learner/training/test_gathered_state.py",),
    "services/config.py": ("tests/deploy/test_settings.py", "tests/deploy/test_load_settings.py"),
    "services/streams/dead_letters.py": ("tests/services/streams/test_tasks.py",),
    "services/streams/rollouts.py": ("tests/services/streams/test_fence.py",),
    "services/weights/chain.py": ("tests/services/weights/test_reader.py",),
    "services/weights/bundle.py": ("tests/services/weights/test_client.py", "tests/services/api/test_weights.py"),
    "services/weights/delta/plain.py": ("tests/services/weights/delta",),
    "services/weights/delta/decoder.py": ("tests/services/weights/delta",),
    "services/weights/delta/elements.py": ("tests/services/weights/delta",),
    "services/weights/delta/encoder.py": ("tests/services/weights/delta",),
    "services/weights/delta/sections.py": ("tests/services/weights/delta",),
    "services/weights/delta/streams.py": ("tests/services/weights/delta",),
    "services/weights/reader.py": ("tests/services/weights/test_publisher.py",),
}
"""Tests of a module besides its mirror."""

PROMISES = (
    "deploy/load_settings.py",
    "deploy/local/supervised_part.py",
    "deploy/local/supervisor.py",
    "deploy/placement.py",
    "deploy/resolved_settings.py",
    "deploy/settings.py",
    "generator/config.py",
    "generator/leases.py",
    "generator/versions.py",
    "learner/algorithms",
    "learner/config.py",
    "learner/data/curriculum.py",
    "learner/evaluation/pass_at_k.py",
    "learner/grading",
    "learner/loop.py",
    "learner/rollouts/collector.py",
    "learner/training/batch_sharding.py",
    "learner/training/checkpoint.py",
    "learner/training/trainer.py",
    "services/api/auth.py",
    "services/api/limits.py",
    "services/api/session.py",
    "services/config.py",
    "services/durable.py",
    "services/streams",
    "services/weights",
)
"""Modules, and folders of them."""


def targets() -> list[Target]:
    """Every module of the promises that has code to change, with the tests that exist for it."""
    paths = [ROOT / promise for promise in PROMISES]
    modules = [module for path in paths for module in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return [_target(module.relative_to(ROOT).as_posix()) for module in modules if module.name != "__init__.py"]


def _target(module: str) -> Target:
    path = Path(module)
    mirror = Path("tests", path.parent, f"test_{path.name}").as_posix()
    tests = (mirror, *ALSO.get(module, ()))
    return Target(module, tuple(test for test in tests if (ROOT / test).exists()))
