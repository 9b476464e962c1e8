"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.data.order import GROUP_SIZE, SampleOrder, epoch_order, share
from mnist_ray.learn import dist
from mnist_ray.learn.augment import distort, draw_affine
from mnist_ray.learn.metrics import Tally, cross_entropy_sum
from mnist_ray.learn.model import CALIBRATION_SAMPLES, DigitCNN, calibrate
from mnist_ray.learn.optim import make_optimizer, set_learning_rate
from mnist_ray.learn.state import TrainState

TICK_S = 1.0
"""Seconds between two progress ticks."""


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its surroundings. Every worker calls each, at the same step but for `tick`."""

    tick: Callable[[TrainState, float], None]
    """Now and then: the state and the loss of the last step."""
    epoch: Callable[[TrainState], None]
    """After each epoch: a row was added to the history."""
    checkpoint: Callable[[TrainState], None]
    """When a checkpoint is due."""


@dataclass(frozen=True)
class DeviceDigits:
    """Digits where they are computed on: `images` uint8[N, 28, 28], `labels` int64[N]."""

    images: Tensor
    labels: Tensor

    @staticmethod
    def put(digits: LabelledDigits, device: torch.device) -> DeviceDigits:
        """Copy digits to a device."""
        labels = torch.from_numpy(digits.labels.astype(np.int64))
        return DeviceDigits(torch.tensor(digits.images, device=device), labels.to(device))


def make_state(config: TrainConfig, device: torch.device) -> TrainState:
    """The state of a run that has not begun: the same weights on every worker."""
    torch.manual_seed(config.seed)
    model = DigitCNN().to(device)
    return TrainState(model, make_optimizer(model, config.lr, config.weight_decay))


def train(config: TrainConfig, splits: Splits, state: TrainState, device: torch.device, hooks: Hooks) -> None:
    """Train from `state.samples_seen` to the end; leaves the model calibrated, in eval mode, the same on every worker."""
    order = SampleOrder(len(splits.train), config.epochs, config.global_batch_size, config.seed)
    calibration = splits.train.images[epoch_order(config.seed, 0, order.num_samples)[:CALIBRATION_SAMPLES]]
    digits, test = DeviceDigits.put(splits.train, device), DeviceDigits.put(splits.test, device)
    model = dist.wrap(state.model).train()
    checkpoint_samples = max(1, round(config.checkpoint_every * order.num_samples))
    ticked = time.monotonic()
    while state.samples_seen < order.total:
        started, before = time.monotonic(), state.samples_seen
        middle = before + min(config.global_batch_size, order.total - before) / 2
        rate = set_learning_rate(state.optimizer, config.lr, middle / order.total)
        loss = train_step(model, state, order, digits, augment=config.augment)
        state.train_seconds += time.monotonic() - started
        if time.monotonic() - ticked > TICK_S:
            hooks.tick(state, loss)
            ticked = time.monotonic()
        finished = state.samples_seen >= order.total
        if finished or state.samples_seen // order.num_samples > before // order.num_samples:
            _end_epoch(state, order, test, calibration, rate)
            hooks.epoch(state)
            model.train()
        if finished or state.samples_seen // checkpoint_samples > before // checkpoint_samples:
            state.tally = state.tally.pooled()
            hooks.checkpoint(state)
    calibrate(state.model, calibration)


def train_step(model: nn.Module, state: TrainState, order: SampleOrder, digits: DeviceDigits, *, augment: bool) -> float:
    """One optimizer step on this worker's share of the next global batch; returns the share's mean loss."""
    batch = order.batch(state.samples_seen)
    span = share(len(batch), dist.rank(), dist.world())
    idle = span.start == span.stop
    if idle:  # DDP wants every worker in the backward pass: compute a group, count it for nothing
        span = slice(0, min(GROUP_SIZE, len(batch)))
    images, labels = _load(digits, batch, span, order.random(state.samples_seen) if augment else None)
    logits = model(images)
    loss = cross_entropy_sum(logits, labels)
    # DDP divides the gradients by the number of workers: this makes them those of the global batch's mean.
    (loss * (0.0 if idle else dist.world() / len(batch))).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.samples_seen += len(batch)
    loss_sum = float(loss.detach())
    if not idle:
        state.tally.add(logits, labels, loss_sum)
    return loss_sum / len(labels)


def _load(
    digits: DeviceDigits, batch: NDArray[np.int64], span: slice, random: np.random.Generator | None
) -> tuple[Tensor, Tensor]:
    """Images and labels of a span of a global batch; the distortion of a sample does not depend on the span."""
    rows = torch.from_numpy(batch[span]).to(digits.labels.device)
    images, labels = digits.images[rows], digits.labels[rows]
    if random is None:
        return images, labels
    return distort(images, draw_affine(random, len(batch))[span].to(images.device)), labels


def _end_epoch(state: TrainState, order: SampleOrder, test: DeviceDigits, calibration: NDArray[np.uint8], rate: float) -> None:
    """Add an epoch to the history and begin the next tally."""
    calibrate(state.model, calibration)
    learned, tested = state.tally.reduced(), evaluate(state.model, test).reduced()
    row = {
        "epoch": state.samples_seen // order.num_samples,
        "samples_seen": state.samples_seen,
        "train_seconds": state.train_seconds,
        "lr": rate,
        "train_loss": learned.loss,
        "train_accuracy": learned.accuracy,
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
    }
    state.history.append(row)
    state.tally = Tally()


@torch.inference_mode()
def evaluate(model: nn.Module, digits: DeviceDigits) -> Tally:
    """Count this worker's share of the digits under a model in eval mode."""
    tally = Tally()
    share_of_all = slice(dist.rank(), None, dist.world())
    images, labels = digits.images[share_of_all], digits.labels[share_of_all]
    for image_batch, label_batch in zip(images.split(256), labels.split(256), strict=True):
        logits = model(image_batch)
        tally.add(logits, label_batch, float(cross_entropy_sum(logits, label_batch)))
    return tally
