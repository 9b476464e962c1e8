"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

import torch

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import LabelledDigits, Splits, hold_out
from mnist_ray.data.order import GROUP_SIZE, SampleOrder, epoch_order
from mnist_ray.flags import checkpoint_interval
from mnist_ray.learn import dist
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.model import CALIBRATION_SAMPLES, calibrate
from mnist_ray.learn.optim import set_learning_rate
from mnist_ray.learn.state import TrainState
from mnist_ray.learn.step import DeviceDigits, evaluate, train_step

TICK_S = 1.0
"""Seconds between two progress ticks."""
AGREE_SAMPLES = 1024
"""Samples between two agreements of all workers on what else is to be done."""
LOOK_S = 2.0
"""Seconds between two looks for a notice that a node goes away."""


class Request(IntFlag):
    """What rank 0 asks of all workers between two steps."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    """Save and stop."""
    LEAVE = 4
    """Stop without saving: the run belongs to another job."""
    LOOK = 8
    """Look together whether a node goes away."""


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its surroundings and is told. Every worker calls each at the same step, but for the first two."""

    tick: Callable[[TrainState, float], None]
    """Now and then: the state and the loss of the last step."""
    asked: Callable[[], Request]
    """On rank 0, often: what the surroundings ask for."""
    epoch: Callable[[TrainState], None]
    """After each epoch: a row was added to the history."""
    checkpoint: Callable[[TrainState], None]
    """When a checkpoint is due."""
    leaving: Callable[[], bool]
    """Whether some worker's node is about to be taken away."""


def split_validation(config: TrainConfig, splits: Splits) -> tuple[LabelledDigits, LabelledDigits | None]:
    """The digits to learn from, and the tenth of them held out for validation where `--patience` asks for one."""
    return hold_out(splits.train, splits.origin) if config.patience else (splits.train, None)


class Loop:
    """One worker's training of a run: the digits on its device, and the state that it advances."""

    def __init__(self, config: TrainConfig, splits: Splits, state: TrainState, device: torch.device, hooks: Hooks) -> None:
        self.config, self.how, self.state, self.hooks = config, config.settings(), state, hooks
        train, held = split_validation(config, splits)
        self.order = SampleOrder(len(train), self.how.global_batch_size, config.seed)
        self.calibration = train.images[epoch_order(config.seed, 0, len(train))[:CALIBRATION_SAMPLES]]
        self.digits, self.test = DeviceDigits.put(train, device), DeviceDigits.put(splits.test, device)
        self.validation = DeviceDigits.put(held, device) if held else None
        self.model = dist.wrap(state.model.train(), self.digits.images[:GROUP_SIZE])
        self.agree_every = max(1, AGREE_SAMPLES // self.how.global_batch_size)
        self.steps, self.rate = 0, 0.0
        self.ticked = self.looked = self.saved = time.monotonic()
        self.noticed = False

    def run(self) -> bool:
        """Train until the run ends or is asked to stop; whether it ended. Leaves the network calibrated."""
        state = self.state
        while not self.ended():
            before, ask = state.samples_seen, Request.NOTHING
            self._timed_step()
            if self.steps == 1 or self.steps % self.agree_every == 0:
                ask = self._agree()
            if ask & Request.LEAVE:
                return False
            epoch = state.samples_seen // len(self.digits) > before // len(self.digits)
            if epoch or state.samples_seen >= state.total:
                self._end_epoch()
            if self._checkpoint_due(before) or ask & (Request.SAVE | Request.STOP):
                self._checkpoint()
            if ask & Request.STOP and not self.ended():
                return False
        calibrate(state.model, self.calibration)
        return True

    def ended(self) -> bool:
        """Whether all samples were seen, or the validation accuracy has stopped rising."""
        scores = [row["validation_accuracy"] for row in self.state.history if self.validation]
        stale = self.config.patience > 0 and len(scores) - 1 - best_epoch(scores) >= self.config.patience
        return stale or self.state.samples_seen >= self.state.total

    def _timed_step(self) -> None:
        state, started = self.state, time.monotonic()
        middle = state.samples_seen + min(self.how.global_batch_size, state.total - state.samples_seen) / 2
        self.rate = set_learning_rate(state.optimizer, self.how, middle / state.total)
        loss = train_step(self.model, state, self.order, self.digits, self.how)
        self.steps += 1
        ticks = started - self.ticked > TICK_S
        if ticks or self.steps % self.agree_every == 0:
            float(loss)  # waits for the device, so that the seconds are those of the work
        state.train_seconds += time.monotonic() - started
        if ticks:
            self.hooks.tick(state, float(loss))
            self.ticked = started

    def _agree(self) -> Request:
        """What all workers do next, as rank 0 sees it; with `--seconds`, also the run's new length."""
        ask, now = Request.NOTHING, time.monotonic()
        amount, unit = checkpoint_interval(self.config.checkpoint_every)
        if dist.rank() == 0:
            ask = self.hooks.asked()
            ask |= Request.SAVE if unit == "seconds" and now - self.saved >= amount else Request.NOTHING
            ask |= Request.LOOK if now - self.looked >= LOOK_S else Request.NOTHING
        answer, self.state.total = dist.from_chief([int(ask), self._fitted_total()])
        ask = Request(answer)
        if ask & Request.LOOK:
            self.looked = now
            noticed, self.noticed = self.noticed, self.hooks.leaving()
            ask |= Request.SAVE if self.noticed and not noticed else Request.NOTHING
        return ask

    def _fitted_total(self) -> int:
        """The samples that fit into `--seconds` at the speed so far, in whole batches; without it what it was."""
        state, size = self.state, self.how.global_batch_size
        if not self.config.seconds:
            return state.total
        left = max(0.0, self.config.seconds - state.train_seconds) * state.samples_seen / max(state.train_seconds, 1e-9)
        return state.samples_seen + round(left / size) * size

    def _checkpoint_due(self, before: int) -> bool:
        amount, unit = checkpoint_interval(self.config.checkpoint_every)
        if self.ended():
            return True
        if unit == "seconds":
            return False
        every = max(1, round(amount * (len(self.digits) if unit == "epochs" else self.how.global_batch_size)))
        return self.state.samples_seen // every > before // every

    def _checkpoint(self) -> None:
        self.state.tally = self.state.tally.pooled()
        self.hooks.checkpoint(self.state)
        self.saved = time.monotonic()

    def _end_epoch(self) -> None:
        """Add an epoch to the history and begin the next tally."""
        state = self.state
        calibrate(state.model, self.calibration)
        learned, tested = state.tally.reduced(), evaluate(state.model, self.test).reduced()
        row = {
            "epoch": round(state.samples_seen / len(self.digits), 2)
            if self.ended()
            else state.samples_seen // len(self.digits),
            "samples_seen": state.samples_seen,
            "train_seconds": state.train_seconds,
            "lr": self.rate,
            "train_samples": learned.count,
            "train_loss": learned.loss,
            "train_accuracy": learned.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
        }
        state.history.append(row)
        if self.validation:
            row["validation_accuracy"] = evaluate(state.model, self.validation).reduced().accuracy
            if best_epoch([earlier["validation_accuracy"] for earlier in state.history]) == len(state.history) - 1:
                state.best = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        state.tally = Tally()
        self.hooks.epoch(state)
        self.model.train()


def best_epoch(scores: list[float]) -> int:
    """The position of the first of the highest scores; -1 if there are none."""
    return scores.index(max(scores)) if scores else -1
