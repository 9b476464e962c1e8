"""A training step recorded as a CUDA graph, so that a GPU does its hundreds of small operations without waiting for Python."""

import torch
from torch import Tensor

from mnist_ray.learn.step import Learn, Learned

WARM_UP = 3
"""Steps that are computed as usual first. In them, the libraries of the GPU choose their algorithms and get their memory."""


class RecordedStep:
    """The function `learn` on one GPU without other workers, recorded for batches of one size. Others are computed as usual."""

    def __init__(self, learn: Learn, batch_size: int) -> None:
        self._learn, self._batch_size = learn, batch_size
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self, rows: Tensor, maps: Tensor | None, weight: float) -> Learned:
        """Take one optimizer step. The returned tensors change with the next step."""
        self._steps += 1
        if len(rows) != self._batch_size or self._steps <= WARM_UP:
            return self._learn(rows, maps, weight)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            self._rows, self._maps = rows.clone(), None if maps is None else maps.clone()
            with torch.cuda.graph(self._graph):
                self._learned = self._learn(self._rows, self._maps, weight)
        self._rows.copy_(rows)
        if self._maps is not None and maps is not None:
            self._maps.copy_(maps)
        self._graph.replay()
        return self._learned
