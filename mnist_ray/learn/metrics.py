"""Counts of predictions, which add up exactly over batches and workers."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from mnist_ray.data.digits import CLASSES
from mnist_ray.learn import dist


class Counted:
    """The figures that a confusion matrix gives."""

    confusion: Any
    """int64[C, C] of C classes, a tensor or an array (rows: truth, columns: prediction)."""

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of samples predicted correctly."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Share of the samples predicted correctly, 0 to 1."""
        return self.correct / max(self.count, 1)


@dataclass
class Tally(Counted):
    """Counted predictions: `confusion` int64[C, C] (rows: truth, columns: prediction) and `loss_sum` float64, in nats.

    Both stay on the device of the predictions, so counting does not wait for the device; reading a figure does.
    """

    confusion: Tensor = field(default_factory=lambda: torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64))
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Add a batch: logits float[B, C], labels int64[B], and the sum of its losses, a scalar."""
        self.confusion, self.loss_sum = self.confusion.to(logits.device), self.loss_sum.to(logits.device)
        cells = labels * len(CLASSES) + logits.argmax(dim=1)
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        self.loss_sum += loss_sum

    @property
    def loss(self) -> float:
        """Mean loss per sample, in nats."""
        return float(self.loss_sum) / max(self.count, 1)

    def reduced(self) -> Self:
        """The sum over all workers, on every worker."""
        return replace(self, confusion=dist.all_reduce_sum(self.confusion), loss_sum=dist.all_reduce_sum(self.loss_sum))
