"""Who gets which cores and GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.placement import generator_env, learner_env, visible_gpus
from learner.parallel.launch_env import ON_CPU


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
    assert learner_env([], 3, 16) == {"OMP_NUM_THREADS": "4", **ON_CPU}
    assert generator_env(0, [], 3, 16, tensor_parallel=1) == {
        "OMP_NUM_THREADS": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    assert learner_env([], 8, 2)["OMP_NUM_THREADS"] == "1"


def test_a_single_gpu_is_shared() -> None:
    assert learner_env(["0"], 1, 16) == generator_env(0, ["0"], 1, 16, tensor_parallel=1) == {}


def test_generators_take_the_gpus_after_the_learners_in_turn() -> None:
    gpus = ["0", "1", "2", "3", "4"]
    assert learner_env(gpus, 2, 16) == {"CUDA_VISIBLE_DEVICES": "0"}
    taken = [generator_env(index, gpus, 2, 16, tensor_parallel=2)["CUDA_VISIBLE_DEVICES"] for index in range(3)]
    assert taken == ["1,2", "3,4", "1,2"]


def test_a_generator_never_gets_a_gpu_of_the_learner_s_ranks() -> None:
    gpus = ["4", "5", "6", "7"]
    assert learner_env(gpus, 1, 16, ranks=2) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    taken = [
        generator_env(index, gpus, 3, 16, tensor_parallel=1, ranks=2)["CUDA_VISIBLE_DEVICES"] for index in range(3)
    ]
    assert taken == ["6", "7", "6"]


def test_of_two_gpus_each_side_has_one() -> None:
    assert learner_env(["0", "1"], 1, 16) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert generator_env(0, ["0", "1"], 1, 16, tensor_parallel=1) == {"CUDA_VISIBLE_DEVICES": "1"}


def test_where_the_learner_has_all_gpus_the_generators_share_them() -> None:
    gpus = ["0", "1"]
    taken = [generator_env(index, gpus, 3, 16, tensor_parallel=1, ranks=2) for index in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in taken] == ["0", "1", "0"]
    wide = generator_env(0, gpus, 1, 16, tensor_parallel=4, ranks=2)
    assert wide == {"CUDA_VISIBLE_DEVICES": "0,1"}, "no GPU is named twice"
