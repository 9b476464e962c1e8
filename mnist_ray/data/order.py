"""Which samples form a global batch, and who computes which of them.

The epochs' permutations follow one another as one endless stream, and global batch k is positions `k * size` up to
`(k + 1) * size` of it: the batch size is fixed, an epoch needs no ragged batch, and every sample comes exactly once per
epoch. Only the last batch of a run may be shorter. Nothing here depends on the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32
"""Consecutive samples of a global batch that one worker always computes together; batch norm normalises over them."""


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The permutation of `num_samples` indices in which one epoch visits them."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The stream of samples of a run; a run may end anywhere in it."""

    num_samples: int
    global_batch_size: int
    seed: int

    def batch(self, position: int, total: int) -> NDArray[np.int64]:
        """Indices of the global batch at a position of a stream that ends at `total`, int64[<= global_batch_size]."""
        stop = min(position + self.global_batch_size, total)
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self.num_samples)
            parts.append(epoch_order(self.seed, epoch, self.num_samples)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def random(self, position: int) -> np.random.Generator:
        """The source of all randomness of the global batch at a stream position."""
        return np.random.default_rng([self.seed, position, 1])


def num_groups(batch_size: int) -> int:
    """Groups of `GROUP_SIZE` in a global batch: the most workers that can share it."""
    return -(-batch_size // GROUP_SIZE)


def share(batch_size: int, rank: int, world: int) -> slice:
    """The part of a global batch that one worker computes: whole groups, as evenly as they go; it may be empty."""
    groups = num_groups(batch_size)
    start, stop = rank * groups // world, (rank + 1) * groups // world
    return slice(min(start * GROUP_SIZE, batch_size), min(stop * GROUP_SIZE, batch_size))
