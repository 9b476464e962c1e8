"""One training step, and the evaluation of a network, on one worker's share of the digits."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.data.digits import LabelledDigits
from mnist_ray.data.order import GROUP_SIZE, SampleOrder, share
from mnist_ray.learn import dist
from mnist_ray.learn.augment import distort, draw_affine, sampling_grid
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.state import TrainState
from mnist_ray.recipes import Recipe


@dataclass(frozen=True)
class DeviceDigits:
    """Digits on the device that computes with them: `images` uint8[N, 28, 28], `labels` int64[N]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def put(cls, digits: LabelledDigits, device: torch.device) -> Self:
        """The digits, copied to a device."""
        labels = torch.from_numpy(digits.labels.astype(np.int64))
        return cls(torch.tensor(digits.images, device=device), labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


def train_step(model: nn.Module, state: TrainState, order: SampleOrder, digits: DeviceDigits, recipe: Recipe) -> Tensor:
    """Take one optimizer step on this worker's share of the next global batch; returns the share's mean loss, a scalar."""
    batch = order.batch(state.samples_seen, state.total)
    span = share(len(batch), dist.rank(), dist.world())
    idle = span.start == span.stop
    if idle:  # DDP needs every worker in the backward pass, so compute one group and give it weight 0
        span = slice(0, min(GROUP_SIZE, len(batch)))
    rows = torch.from_numpy(batch[span]).to(digits.labels.device, non_blocking=True)
    images, labels = digits.images.index_select(0, rows), digits.labels.index_select(0, rows)
    if recipe.affine:  # drawn for the whole batch, so that a sample's distortion does not depend on the span
        grid = sampling_grid(draw_affine(order.random(state.samples_seen), len(batch), recipe.affine))
        images = distort(images, grid[span].to(images.device, non_blocking=True))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=state.precision == "bfloat16"):
        logits = model(images)
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=recipe.label_smoothing)
    # DDP divides the summed gradients by the number of workers; this scale makes them the gradients of the global mean loss.
    dist.backward(loss * (0.0 if idle else dist.world() / len(batch)))
    state.optimizer.step()
    model.zero_grad()
    state.samples_seen += len(batch)
    if not idle:
        state.tally.add(logits, labels, loss)
    return loss.detach() / len(labels)


@torch.inference_mode()
def evaluate(model: nn.Module, digits: DeviceDigits) -> Tally:
    """The predictions of a model in eval mode on this worker's share of the digits, counted."""
    tally = Tally()
    every_nth = slice(dist.rank(), None, dist.world())
    images, labels = digits.images[every_nth], digits.labels[every_nth]
    for image_batch, label_batch in zip(images.split(256), labels.split(256), strict=True):
        logits = model(image_batch)
        tally.add(logits, label_batch, F.cross_entropy(logits, label_batch, reduction="sum"))
    return tally
