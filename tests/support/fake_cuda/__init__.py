"""The learner's CUDA branches on models of any size, without a GPU: what they allocate, copy, wait for and launch.

A CPU build of torch is made to accept the device type "cuda" (`guard.cpp`, `device`), tensors have shapes and no
memory (FakeTensorMode), and a tracker sees every operator (`tracker`). A step of the real `Trainer` runs on that
(`step`), on torch's fake process group where there are several ranks. Tests ask `runs` for measurements, which come
from a process of its own: torch looks for the guard once, when it is imported.

Types, shapes, dispatch, aliasing and sizes are what CUDA's would be. Not shown: the kernels' numbers, NCCL, time,
fragmentation.
"""
