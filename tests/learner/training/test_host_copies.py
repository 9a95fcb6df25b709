"""Copies of a state in host memory."""

from __future__ import annotations

import torch

from learner.training.host_copies import HostCopies


def test_a_copy_is_what_the_tensors_were_when_it_was_taken() -> None:
    copies, weight = HostCopies(), torch.arange(6.0)
    taken = copies.take({"w": weight, "steps": torch.tensor(3)})
    copies.wait()
    weight.zero_()
    assert taken["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert taken["steps"].item() == 3


def test_buffers_are_reused_as_long_as_they_fit() -> None:
    copies = HostCopies()
    first = copies.take({"w": torch.zeros(4)})["w"].data_ptr()
    second = copies.take({"w": torch.ones(4)})["w"]
    assert (second.data_ptr(), second.tolist()) == (first, [1, 1, 1, 1])
    other = copies.take({"w": torch.ones(4, dtype=torch.float64)})["w"]
    assert (other.dtype, other.tolist()) == (torch.float64, [1, 1, 1, 1])
