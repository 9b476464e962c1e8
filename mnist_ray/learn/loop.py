"""The training loop."""

import math
import time
from contextlib import suppress

import torch
from torch import Tensor

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import Splits, hold_out
from mnist_ray.data.order import GROUP_SIZE, SampleOrder, epoch_order
from mnist_ray.errors import MnistRayError, UsageError
from mnist_ray.flags import checkpoint_interval
from mnist_ray.learn import dist
from mnist_ray.learn.control import Request, RunControl
from mnist_ray.learn.graph import RecordedStep
from mnist_ray.learn.history import HistoryWriter
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.model import ARCHITECTURE, CALIBRATION_SAMPLES, calibrate
from mnist_ray.learn.optim import learning_rate
from mnist_ray.learn.state import all_have_bfloat16, make_state, newest_checkpoint, save_checkpoint
from mnist_ray.learn.step import DeviceDigits, evaluate, learner, train_step

SHOW_S = 1.0
"""Seconds between two progress records."""
AGREE_SAMPLES = 1024
"""Samples between two steps after which the workers agree on what to do next."""
CHECK_NODES_S = 2.0
"""Seconds between two checks whether a node is about to be taken away."""


class Loop:
    """One worker's training of a run: the digits on its device, the state of the run, its checkpoints and its history."""

    def __init__(self, run: str, config: TrainConfig, splits: Splits, device: torch.device, control: RunControl) -> None:
        """Prepare to train from the newest checkpoint in the directory `run`, or from the start.

        `warnings` then names the damaged checkpoints. Raises OutputError if the checkpoint belongs to another run.
        """
        self.config, self.recipe, self.control = config, config.settings(), control
        # With --patience, a tenth of the training digits is held out to choose the best epoch.
        train, validation = hold_out(splits.train, splits.origin) if config.patience else (splits.train, None)
        self.state = make_state(config, len(train), device)
        self._directory, self.history = run, HistoryWriter(run)
        self._identity = f"{ARCHITECTURE} {config.fingerprint()} {splits.train.digest} {splits.test.digest}"
        saved, self.warnings = dist.on_rank_0(lambda: newest_checkpoint(run, self._identity))
        if saved is not None:
            self.state.load_bytes(saved, run)
        if self.state.precision == "bfloat16" and not all_have_bfloat16(device):
            self.warnings.append("the run computes in bfloat16, which a worker's hardware emulates: this is slow")
        self._continued_from = self.state.samples_seen
        self.order = SampleOrder(len(train), self.recipe.global_batch_size, config.seed)
        self.calibration = train.images[epoch_order(config.seed, 0, len(train))[:CALIBRATION_SAMPLES]]
        self.digits, self.test = DeviceDigits.put(train, device), DeviceDigits.put(splits.test, device)
        self.validation = DeviceDigits.put(validation, device) if validation else None
        self.model = dist.wrap(self.state.model.train(), self.digits.images[:GROUP_SIZE])
        self._learn = learner(self.model, self.state, self.digits, self.recipe)
        if device.type == "cuda" and dist.world() == 1:
            self._learn = RecordedStep(self._learn, self.recipe.global_batch_size)
        amount, unit = checkpoint_interval(config.checkpoint_every)
        samples = amount * (len(train) if unit == "epochs" else self.recipe.global_batch_size)
        self._save_samples = math.inf if unit == "seconds" else max(1, round(samples))
        self._save_s = amount if unit == "seconds" else math.inf
        self._agree_steps = max(1, AGREE_SAMPLES // self.recipe.global_batch_size)
        self._steps = 0
        self._warm = (0, 0.0)
        """Samples and seconds of the run after this process's first step."""
        self._shown_at = self._checked_at = self._saved_at = time.monotonic()
        self._node_leaving = False

    def run(self) -> bool:
        """Train until the run ends or is asked to stop; returns whether it ended, with the network calibrated.

        Raises UsageError on every worker if the loss, a weight or the optimizer's state is no longer finite. It is never saved.
        """
        state = self.state
        while not self.ended():
            before, request = state.samples_seen, Request.NOTHING
            self._timed_step()
            if self._steps == 1 or self._steps % self._agree_steps == 0:
                request = self._agree()
            if request & Request.ABANDON:
                return False
            after = state.samples_seen
            if after // len(self.digits) > before // len(self.digits) or after >= state.total:
                self._end_epoch()
            due = self.ended() or after // self._save_samples > before // self._save_samples
            if due or request & (Request.SAVE | Request.STOP):
                self._save_checkpoint()
            if request & Request.STOP and not self.ended():
                return False
        calibrate(state.model, self.calibration)
        return True

    def ended(self) -> bool:
        """Whether all samples were seen, or the validation accuracy has stopped rising."""
        stale = self.config.patience and self._epochs_since_best() >= self.config.patience
        return bool(stale) or self.state.samples_seen >= self.state.total

    def _epochs_since_best(self) -> int:
        """Epochs after the first one with the highest validation accuracy."""
        scores = [row["validation_accuracy"] for row in self.state.history]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _timed_step(self) -> None:
        state, started = self.state, time.monotonic()
        middle = state.samples_seen + min(self.recipe.global_batch_size, state.total - state.samples_seen) / 2
        state.optimizer.lr = learning_rate(self.recipe, middle / state.total)
        self._loss = train_step(self._learn, state, self.order, self.recipe)
        self._steps += 1
        show = started - self._shown_at > SHOW_S
        if show or self._steps % self._agree_steps == 0:
            float(self._loss)  # waits for the device, so that the seconds are those of the work
        state.train_seconds += time.monotonic() - started
        if show and math.isfinite(self._loss):
            self.show(float(self._loss))
            self._shown_at = started

    def show(self, loss: float) -> None:
        """Show a progress record: the run's position and history, its speed, and the given loss in nats per sample."""
        if dist.rank() == 0:
            state = self.state
            self.control.show(
                {
                    "samples_seen": state.samples_seen,
                    "total": state.total,
                    "history": state.history,
                    "epochs": state.total / len(self.digits),
                    "loss": loss,
                    "samples_per_second": state.samples_seen / max(state.train_seconds, 1e-9),
                    "warnings": self.warnings,
                    "continued_from": self._continued_from,
                }
            )

    def _agree(self) -> Request:
        """What rank 0 asks of all workers; with `--seconds`, also sets the run's new length."""
        now = time.monotonic()

        def ask() -> tuple[Request, int]:
            self._require_finite("loss", self._loss)
            request = self.control.requested()
            request |= Request.SAVE if now - self._saved_at >= self._save_s else Request.NOTHING
            request |= Request.CHECK_NODES if now - self._checked_at >= CHECK_NODES_S else Request.NOTHING
            return request, self._fitted_total()

        request, self.state.total = dist.on_rank_0(ask)
        if request & Request.CHECK_NODES:
            self._checked_at = now
            before, self._node_leaving = self._node_leaving, self.control.node_leaving()
            request |= Request.SAVE if self._node_leaving and not before else Request.NOTHING
        return request

    def _fitted_total(self) -> int:
        """The run's length in samples: with `--seconds`, the whole batches that fit into the time left at the speed so far.

        The first step of a process also starts the device, so it tells nothing about the speed.
        """
        state, size = self.state, self.recipe.global_batch_size
        left = self.config.seconds - state.train_seconds
        if not self.config.seconds or (self._steps == 1 and left > 0):
            self._warm = (state.samples_seen, state.train_seconds)
            return state.total
        samples, seconds = state.samples_seen - self._warm[0], state.train_seconds - self._warm[1]
        return state.samples_seen + round(max(0.0, left) * samples / max(seconds, 1e-9) / size) * size

    def _save_checkpoint(self) -> None:
        total = self.state.tally.reduced()
        self.state.tally = total if dist.rank() == 0 else Tally()  # rank 0's checkpoint then holds all counts once

        def save() -> None:
            for name, weights in self.state.model.state_dict().items():
                self._require_finite(f"sum of {name}", weights.double().sum())
            # An infinite moment stops its weights for ever, and no loss shows it.
            for moments in self.state.optimizer.state:
                for name, values in moments.items():
                    self._require_finite(f"sum of the optimizer's {name}", values.double().sum())
            save_checkpoint(self._directory, self.state, self._identity)

        dist.on_rank_0(save)
        self._saved_at = time.monotonic()

    def _require_finite(self, name: str, value: Tensor) -> None:
        """Raise UsageError if a scalar is NaN or infinite, because such a run learns nothing more."""
        if math.isfinite(value):
            return
        rate, step = self.state.optimizer.lr, self.state.samples_seen / self.recipe.global_batch_size
        raise UsageError(
            f"--lr {self.recipe.lr:g}: training has diverged: the {name} is {float(value)} at step {math.ceil(step):,}, "
            f"where the learning rate is {rate:.3g}; start again with a smaller --lr and another --out"
        )

    def _end_epoch(self) -> None:
        """Measure the network, add a row to the history, and begin the next epoch's tally.

        A network that may become the bundle is measured in float32, as the bundle is; others in the precision of the run.
        """
        state = self.state
        rounded = state.precision == "bfloat16" and not (self.ended() or self.config.patience)
        with torch.autocast(self.test.images.device.type, torch.bfloat16, enabled=rounded):
            calibrate(state.model, self.calibration)
            tested = evaluate(state.model, self.test).reduced()
        learned = state.tally.reduced()
        self._require_finite("sum of losses", learned.loss_sum + tested.loss_sum)  # the same on every worker
        epochs = state.samples_seen / len(self.digits)
        row = {
            "epoch": round(epochs, 2) if self.ended() else int(epochs),
            "samples_seen": state.samples_seen,
            "train_seconds": state.train_seconds,
            "lr": state.optimizer.lr,
            "train_samples": learned.count,
            "train_loss": learned.loss,
            "train_accuracy": learned.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
        }
        state.history.append(row)
        if self.validation:
            row["validation_accuracy"] = evaluate(state.model, self.validation).reduced().accuracy
            if self._epochs_since_best() == 0:
                state.best = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        state.tally = Tally()
        if dist.rank() == 0:
            with suppress(MnistRayError):  # the end of the run writes the whole history again
                self.history.write(state.history, patience_s=0)
        self.show(row["train_loss"])
        self.model.train()
