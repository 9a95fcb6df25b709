"""The order in which prompts come: an endless sequence of epochs, each a permutation drawn from (seed, epoch).

A weight says how often a prompt comes: with 2 twice in an epoch, with 0.5 in every second one. Prompts of each weight
come from a sequence of permutations of their own, so that all of them come equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class PromptOrder:
    """A pure function of (seed, position).

    order = PromptOrder([1.0] * 40, seed=7)
    order.indices(range(80))        every prompt twice, in two orders
    """

    def __init__(self, weights: Sequence[float], *, seed: int, multiple_of: int = 1) -> None:
        """`weights`: one a prompt. `multiple_of`: an epoch leaves out what exceeds a multiple of so many prompts."""
        self._seed = seed
        by_weight = {weight: np.flatnonzero(np.array(weights) == weight) for weight in dict.fromkeys(weights)}
        self._pools = [(pool, max(1, round(weight * len(pool)))) for weight, pool in by_weight.items()]
        self._is_plain = set(by_weight) == {1.0}
        entries = sum(taken for _, taken in self._pools)
        self.epoch_size = entries - entries % multiple_of
        """Prompts that an epoch takes."""
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def indices(self, positions: Sequence[int] | range) -> list[int]:
        """Of the prompts at these positions of the sequence."""
        epochs, offsets = np.divmod(np.array(positions), self.epoch_size)
        return [
            int(self._epoch(epoch)[offset]) for epoch, offset in zip(epochs.tolist(), offsets.tolist(), strict=True)
        ]

    def _make_epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._is_plain:
            return self._permuted(epoch, len(self._pools[0][0]))
        drawn = [self._from_pool(number, epoch) for number in range(len(self._pools))]
        entries = np.concatenate(drawn)
        return entries[self._permuted(epoch, len(entries))]

    def _from_pool(self, number: int, epoch: int) -> NDArray[np.int64]:
        """What the pool gives to the epoch, from its own endless sequence of permutations."""
        pool, taken = self._pools[number]
        passes, offsets = np.divmod(np.arange(epoch * taken, (epoch + 1) * taken), len(pool))
        orders = {int(one): self._permuted(int(one), len(pool), number + 1) for one in np.unique(passes)}
        return np.array([pool[orders[one][at]] for one, at in zip(passes.tolist(), offsets.tolist(), strict=True)])

    def _permuted(self, epoch: int, count: int, *stream: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self._seed, epoch, *stream])).permutation(count)
