"""Counts that add exactly across batches and workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ray.learn import dist


@dataclass
class Tally:
    """Predictions counted: `confusion` int64[10, 10], truth by prediction, and the sum of the losses."""

    confusion: Tensor = field(default_factory=lambda: torch.zeros(10, 10, dtype=torch.int64))
    loss_sum: float = 0.0

    def add(self, logits: Tensor, labels: Tensor, loss_sum: float) -> None:
        """Count a batch: logits float[B, 10], labels int64[B], and the sum of its losses."""
        cells = labels * 10 + logits.detach().argmax(dim=1)
        self.confusion += torch.bincount(cells, minlength=100).reshape(10, 10).cpu()
        self.loss_sum += loss_sum

    @property
    def count(self) -> int:
        """Samples counted."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Samples predicted right."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Share of the samples predicted right, 0 to 1."""
        return self.correct / max(self.count, 1)

    @property
    def loss(self) -> float:
        """Mean loss per sample, in nats."""
        return self.loss_sum / max(self.count, 1)

    def reduced(self) -> Tally:
        """The sum over all workers, the same on each."""
        confusion = dist.all_reduce_sum(self.confusion)
        loss_sum = dist.all_reduce_sum(torch.tensor(self.loss_sum, dtype=torch.float64))
        return Tally(confusion, float(loss_sum))

    def pooled(self) -> Tally:
        """The same sum held by rank 0 alone, so that one worker's checkpoint keeps the counts of all."""
        total = self.reduced()
        return total if dist.rank() == 0 else Tally()

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"confusion": self.confusion, "loss_sum": self.loss_sum}


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross-entropy of a batch, in nats."""
    return F.cross_entropy(logits, labels, reduction="sum")
