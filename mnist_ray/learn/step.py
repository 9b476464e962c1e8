"""One training step, and the evaluation of a network, on one worker's share of the digits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

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


class Learned(NamedTuple):
    """What one optimizer step has computed from its batch, with the weights before the step."""

    logits: Tensor
    labels: Tensor
    loss: Tensor
    """Sum over the batch, in nats, a scalar."""


Learn = Callable[[Tensor, Tensor | None, float], Learned]
"""What `learner` returns."""


def learner(model: nn.Module, state: TrainState, digits: DeviceDigits, recipe: Recipe) -> Learn:
    """A function that takes one optimizer step on the digits at `rows` int64[N].

    `maps` float32[N, 2, 3] distort them, and `weight` multiplies the summed loss. All tensors are on the device.
    """

    def learn(rows: Tensor, maps: Tensor | None, weight: float) -> Learned:
        images, labels = digits.images.index_select(0, rows), digits.labels.index_select(0, rows)
        if maps is not None:
            images = distort(images, sampling_grid(maps))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=state.precision == "bfloat16"):
            logits = model(images)
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=recipe.label_smoothing)
        dist.backward(loss * weight)
        state.optimizer.step()
        model.zero_grad()
        return Learned(logits.detach(), labels, loss.detach())

    return learn


def train_step(learn: Learn, state: TrainState, order: SampleOrder, recipe: Recipe) -> Tensor:
    """Take one optimizer step on this worker's share of the next global batch; returns the share's mean loss, a scalar."""
    batch = order.batch(state.samples_seen, state.total)
    span = share(len(batch), dist.rank(), dist.world())
    idle = span.start == span.stop
    if idle:  # DDP needs every worker in the backward pass, so compute one group and give it weight 0
        span = slice(0, min(GROUP_SIZE, len(batch)))
    device, maps = state.model.head.weight.device, None
    if recipe.affine:  # drawn for the whole batch, so that a sample's distortion does not depend on the span
        maps = draw_affine(order.random(state.samples_seen), len(batch), recipe.affine)[span].to(device, non_blocking=True)
    rows = torch.from_numpy(batch[span]).to(device, non_blocking=True)
    # DDP divides the summed gradients by the number of workers; this weight makes them the gradients of the global mean loss.
    learned = learn(rows, maps, 0.0 if idle else dist.world() / len(batch))
    state.samples_seen += len(batch)
    if not idle:
        state.tally.add(*learned)
    return learned.loss / len(rows)


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
