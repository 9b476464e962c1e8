"""Defines which samples form a global batch, and which worker computes which of them.

The permutations of all epochs form one endless stream of samples. Global batch k is positions `k * size` to `(k + 1) * size`
of this stream, so a batch may span two epochs and only the last batch of a run may be shorter. Every sample occurs exactly once
per epoch. The content of a batch does not depend on the number of workers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32
"""Samples per group. One worker computes a whole group, and batch norm normalises over it."""


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The order of the samples in one epoch: a permutation, int64[num_samples]."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The stream of samples of a run. A run may end at any position."""

    num_samples: int
    global_batch_size: int
    seed: int

    def batch(self, position: int, total: int) -> NDArray[np.int64]:
        """Sample indices of the global batch at `position`, int64[<= global_batch_size], in a stream that ends at `total`."""
        stop = min(position + self.global_batch_size, total)
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self.num_samples)
            parts.append(epoch_order(self.seed, epoch, self.num_samples)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def random(self, position: int) -> np.random.Generator:
        """The random generator for the global batch at a stream position."""
        return np.random.default_rng([self.seed, position, 1])


def num_groups(batch_size: int) -> int:
    """Groups in a global batch. This is also the largest number of workers that can share it."""
    return -(-batch_size // GROUP_SIZE)


def share(batch_size: int, rank: int, world: int) -> slice:
    """The part of a global batch that one worker computes: whole groups, divided as evenly as possible. It may be empty."""
    groups = num_groups(batch_size)
    start, stop = rank * groups // world, (rank + 1) * groups // world
    return slice(min(start * GROUP_SIZE, batch_size), min(stop * GROUP_SIZE, batch_size))
