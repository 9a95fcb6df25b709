"""Who gets which cores and GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.placement import VISIBLE, Placement, place, visible_gpus
from learner.parallel.launch_env import ON_CPU
from services.errors import ConfigError


def test_gpus_are_those_the_user_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus({}, tmp_path / "none") == []
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:02:00.0").mkdir()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,5"}, tmp_path) == ["3", "5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": " 3 ,-1, GPU-5f"}, tmp_path) == ["3", "GPU-5f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    assert visible_gpus() == ["6"]


def test_on_cpu_all_share_the_cores_and_nobody_pins_threads() -> None:
    placement = place([], 16, ranks=1, generators=3, tensor_parallel=1)
    assert placement.learner_env() == {"OMP_NUM_THREADS": "4", **ON_CPU}
    assert placement.generator_env(0) == {"OMP_NUM_THREADS": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert placement.generators_limit is None
    assert place([], 2, ranks=1, generators=8, tensor_parallel=1).learner_env()["OMP_NUM_THREADS"] == "1"


def test_a_single_gpu_is_shared_with_one_generator() -> None:
    placement = place(["GPU-a"], 16, ranks=1, generators=1, tensor_parallel=1)
    assert placement.learner_env() == placement.generator_env(0) == {VISIBLE: "GPU-a"}
    assert (placement.shared, placement.generators_limit) == (True, 1)
    with pytest.raises(ConfigError, match=r"generator\.count is 2.*the learner and one generator share"):
        place(["GPU-a"], 16, ranks=1, generators=2, tensor_parallel=1)


def test_generators_take_the_gpus_after_the_learners() -> None:
    placement = place(list("01234"), 16, ranks=1, generators=2, tensor_parallel=2)
    assert placement.learner_env() == {VISIBLE: "0"}
    assert [placement.generator_env(index)[VISIBLE] for index in range(2)] == ["1,2", "3,4"]
    assert (placement.shared, placement.generators_limit) == (False, 2)


def test_an_evaluator_takes_no_gpus() -> None:
    placement = place(["0", "1"], 16, ranks=0, generators=2, tensor_parallel=1)
    assert placement.learner_env()[VISIBLE] == ""
    assert [placement.generator_env(index)[VISIBLE] for index in range(2)] == ["0", "1"]


def test_engines_that_need_no_gpu_leave_all_of_them_to_the_learner() -> None:
    placement = place(["0", "1"], 16, ranks=2, generators=9, tensor_parallel=0)
    assert (placement.learner, placement.generators_limit) == (("0", "1"), None)
    assert placement.generator_env(8)[VISIBLE] == ""


@pytest.mark.parametrize(
    ("gpus", "ranks", "generators", "tensor_parallel", "message", "hint"),
    [
        (4, 8, 0, 1, r"training\.ranks is 8.*this machine has 4", "set training.ranks to 4"),
        (4, 4, 1, 1, r"generator\.count is 1.*the learner takes 4 of 4", "lower training.ranks"),
        (8, 4, 3, 2, r"generator\.count is 3 of 2 GPUs each.*the learner takes 4 of 8", "set generator.count to 2"),
        (4, 1, 1, 4, r"of 4 GPUs each.*the learner takes 1 of 4", "lower generator.tensor_parallel to 3"),
        (2, 0, 3, 1, r"there are 2", "set generator.count to 2"),
    ],
)
def test_too_few_gpus_are_refused_with_what_would_fit(
    gpus: int, ranks: int, generators: int, tensor_parallel: int, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        place(names(gpus), 16, ranks=ranks, generators=generators, tensor_parallel=tensor_parallel)
    assert hint in str(caught.value.hint)


@given(
    gpus=st.integers(0, 16), ranks=st.integers(0, 9), generators=st.integers(0, 9), tensor_parallel=st.integers(0, 5)
)
def test_no_gpu_is_given_twice_unless_there_is_only_one(
    gpus: int, ranks: int, generators: int, tensor_parallel: int
) -> None:
    try:
        placement = place(names(gpus), 16, ranks=ranks, generators=generators, tensor_parallel=tensor_parallel)
    except ConfigError:
        assert gpus < ranks + generators * tensor_parallel, "a machine that suffices is never refused"
        return
    given = taken(placement)
    assert len(set(given)) == len(given) or (gpus == 1 and given == ["gpu-0", "gpu-0"])
    assert set(given) <= set(names(gpus))
    if gpus:
        assert len(placement.learner) == ranks
        assert all(len(group) == tensor_parallel for group in placement.generators or ())
        limit = placement.generators_limit
        assert limit is None if not tensor_parallel else limit is not None and limit >= generators


def names(count: int) -> list[str]:
    return [f"gpu-{index}" for index in range(count)]


def taken(placement: Placement) -> list[str]:
    return [*placement.learner, *(gpu for group in placement.generators or () for gpu in group)]
