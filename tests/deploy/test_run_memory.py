"""Whether a run fits, on machines of every kind: what is refused, with what remedy, and how one GPU is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import run_memory
from deploy.load_settings import load
from deploy.placement import Placement, place
from deploy.run_memory import MachineMemory, RunMemory, engine_memory, memory_of_run, plan_memory
from deploy.settings import Settings
from learner.memory.machine import HostMemory
from learner.memory.model_shape import ModelShape, shape_of_config
from services.errors import ConfigError
from tests.support import tiny_models
from tests.support.model_configs import CONFIGS

GIB = 1 << 30


def shape(name: str) -> ModelShape:
    found = shape_of_config(CONFIGS[name])
    assert found is not None
    return found


def settings(*sets: str) -> Settings:
    return load(None, list(sets), environ={})


def machine(*, host: float = 2000, gpu: float = 0, gpus: int = 0) -> MachineMemory:
    size = HostMemory(limit=int(host * GIB), available=int(host * GIB))
    return MachineMemory(size, {str(index): int(gpu * GIB) for index in range(gpus)})


def placed(chosen: Settings, gpus: int, *, ranks: int | None = None) -> Placement:
    return place(
        [str(index) for index in range(gpus)],
        16,
        ranks=chosen.training.ranks if ranks is None else ranks,
        generators=chosen.generator.count,
        tensor_parallel=chosen.generator.tensor_parallel,
    )


def planned(name: str, *sets: str, gpus: int = 0, gpu: float = 0, host: float = 2000) -> RunMemory:
    chosen = settings(*sets)
    return plan_memory(shape(name), chosen, placed(chosen, gpus), machine(host=host, gpu=gpu, gpus=gpus))


def test_a_small_model_on_a_large_machine_fits() -> None:
    memory = planned("Qwen2.5-0.5B", gpus=2, gpu=80)
    assert memory.learner is not None
    assert (memory.recomputation, memory.memory_fraction, memory.learner_share) == ("off", None, None)
    assert memory.sequences is not None and memory.sequences > 1000


def test_more_ranks_than_gpus_are_left_are_never_recommended() -> None:
    with pytest.raises(ConfigError) as caught:
        planned("Qwen2.5-Math-7B", "generator.count=3", gpus=4, gpu=40)
    assert "training.ranks" not in str(caught.value.hint)
    with pytest.raises(ConfigError) as caught:
        planned("Qwen2.5-Math-7B", "generator.count=1", gpus=8, gpu=80)
    assert "training.ranks" in str(caught.value.hint)


def test_one_gpu_is_shared_by_the_estimate() -> None:
    memory = planned("Qwen2.5-0.5B", gpus=1, gpu=80)
    assert memory.learner is not None and memory.memory_fraction is not None and memory.learner_share is not None
    assert memory.memory_fraction * 80 * GIB + memory.learner.total <= 80 * GIB
    assert memory.memory_fraction * 80 * GIB >= memory.engine.device + memory.engine.sequence
    assert memory.learner_share + memory.memory_fraction < 1
    assert memory.learner.tensors <= (memory.learner_share + 0.02) * 80 * GIB


def test_on_a_shared_gpu_the_learner_recomputes_rather_than_be_refused() -> None:
    modes = [planned("Qwen2.5-0.5B", gpus=1, gpu=gib).recomputation for gib in (140, 30, 20)]
    assert modes == ["off", "light", "full"]


def test_a_share_that_a_person_has_set_is_kept() -> None:
    memory = planned("Qwen2.5-0.5B", "generator.memory_fraction=0.25", gpus=1, gpu=80)
    assert memory.memory_fraction == 0.25


def test_what_does_not_fit_beside_the_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the learner needs .* GiB of GPU memory"):
        planned("Qwen2.5-Math-7B", gpus=1, gpu=80)
    with pytest.raises(ConfigError, match=r"the learner needs .* GiB of GPU memory"):
        planned("Qwen2.5-0.5B", "generator.memory_fraction=0.95", gpus=1, gpu=80)


def test_a_gpu_of_unknown_size_is_shared_only_as_a_person_says() -> None:
    chosen = settings()
    unknown = MachineMemory(machine().host)
    with pytest.raises(ConfigError, match="share one GPU, and nvidia-smi") as caught:
        plan_memory(shape("Qwen2.5-0.5B"), chosen, placed(chosen, 1), unknown)
    assert "generator.memory_fraction" in str(caught.value.hint)
    two = plan_memory(shape("Qwen2.5-0.5B"), chosen, placed(chosen, 2), unknown)
    assert (two.learner, two.sequences, two.recomputation) == (None, None, None)


def test_a_model_of_unknown_size_shares_a_gpu_only_as_a_person_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_memory, "shape_of_model", lambda _: None)
    with pytest.raises(ConfigError, match="share one GPU"):
        memory_of_run(settings(), placed(settings(), 1))
    assert memory_of_run(settings("generator.memory_fraction=0.5"), placed(settings(), 1)) is None
    assert memory_of_run(settings(), placed(settings(), 2)) is None


def test_an_engine_that_is_too_large_for_its_gpus_is_refused() -> None:
    chosen = settings()
    with pytest.raises(ConfigError, match=r"KV cache has 0\.00 GiB beside 6\d\.\d GiB for the engine") as caught:
        evaluated("Qwen2.5-32B", chosen, gpus=2, gpu=64)
    assert "raise generator.tensor_parallel" in str(caught.value.hint)
    two = evaluated("Qwen2.5-32B", settings("generator.tensor_parallel=2"), gpus=2, gpu=64)
    assert two.sequences is not None and two.sequences > 10


def evaluated(name: str, chosen: Settings, *, gpus: int, gpu: float) -> RunMemory:
    found = machine(gpu=gpu, gpus=gpus)
    return plan_memory(shape(name), chosen, placed(chosen, gpus, ranks=0), found, leader="evaluator")


def test_tensor_parallel_shares_weights_and_cache() -> None:
    one = engine_memory(shape("Qwen2.5-32B"), settings(), on_gpu=True)
    four = engine_memory(shape("Qwen2.5-32B"), settings("generator.tensor_parallel=4"), on_gpu=True)
    work = run_memory.ENGINE_WORK_BYTES
    assert four.device - work == pytest.approx((one.device - work) / 4, abs=1)
    assert four.sequence == pytest.approx(one.sequence / 4, abs=1)


@pytest.mark.parametrize(("dtype", "times"), [("auto", 2), ("float32", 2), ("bfloat16", 1)])
def test_engines_compute_in_float32_on_cpu_unless_told_otherwise(dtype: str, times: int) -> None:
    model = shape("Qwen2.5-0.5B")
    engine = engine_memory(model, settings(f"generator.dtype={dtype}", "generator.cpu_cache_gib=1"), on_gpu=False)
    assert engine.host == times * model.published_bytes + GIB + run_memory.ENGINE_LIBRARIES_BYTES


def test_on_cpu_all_parts_take_from_the_same_memory() -> None:
    memory = planned("Qwen2.5-0.5B", "training.micro_batch_tokens=4096", host=40)
    assert memory.learner is not None
    shared = shape("Qwen2.5-0.5B").published_bytes
    assert memory.host_bytes == memory.learner.total + memory.engine.host + shared + run_memory.SERVICES_BYTES
    with pytest.raises(ConfigError, match=r"the learner needs .* GiB of host memory"):
        planned("Qwen2.5-0.5B", host=10)


def test_the_published_weights_count_once_for_all_generators_of_a_host() -> None:
    one, eight = (planned("Qwen2.5-Math-7B", f"generator.count={count}", gpus=9, gpu=141, host=600) for count in (1, 8))
    assert eight.host_bytes - one.host_bytes == 7 * run_memory.ENGINE_LIBRARIES_BYTES
    none = planned("Qwen2.5-Math-7B", "generator.count=0", gpus=9, gpu=141, host=600)
    weights = shape("Qwen2.5-Math-7B").published_bytes
    assert one.host_bytes - none.host_bytes == weights + run_memory.ENGINE_LIBRARIES_BYTES


def test_generators_that_are_too_many_for_the_host_are_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"50 generators take") as caught:
        planned("Qwen2.5-Math-7B", "training.ranks=2", "generator.count=50", gpus=52, gpu=141, host=200)
    assert str(caught.value.hint).startswith("generator.count = ")


def test_an_evaluator_needs_no_room_for_training() -> None:
    memory = evaluated("Qwen2.5-Math-7B", settings(), gpus=1, gpu=80)
    assert (memory.learner, memory.recomputation, memory.memory_fraction) == (None, None, None)
    assert memory.sequences is not None and memory.sequences > 100


def test_a_folder_is_read_and_a_scripted_engine_needs_little(tmp_path: Path) -> None:
    chosen = settings(f"model.path={tiny_models.save(tmp_path)}", "generator.engine=scripted")
    memory = memory_of_run(chosen, place([], 2, ranks=1, generators=1, tensor_parallel=0))
    assert memory is not None
    assert memory.engine.host < GIB


def test_engines_that_leave_a_learner_on_cpu_nothing_are_refused_first() -> None:
    with pytest.raises(ConfigError, match=r"3 generators take .* GiB each") as caught:
        planned("Qwen2.5-0.5B", "generator.count=3", host=14)
    assert caught.value.hint == "generator.count = 2 would fit"
