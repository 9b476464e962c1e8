"""The contracts of training: the number of workers changes nothing, and neither does an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.data.order import SampleOrder
from mnist_ray.learn import dist, loop, state
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.optim import make_optimizer
from mnist_ray.learn.step import DeviceDigits, evaluate, train_step
from tests.learn.gloo import run_workers

CPU = torch.device("cpu")
STEPS = 12


def _losses(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], batch: int) -> list[float]:
    """The global mean loss of each of a few steps, computed in float64."""
    config = TrainConfig(workers="0", epochs=2, global_batch_size=batch)
    how = config.settings()
    training = state.make_state(config, len(labels), CPU)
    training.model.double()
    training.optimizer = make_optimizer(training.model, how)
    order = SampleOrder(len(labels), batch, config.seed)
    digits = DeviceDigits.put(LabelledDigits(images, labels), CPU)
    model = dist.wrap(training.model.train(), digits.images[:32])
    losses: list[float] = []
    while len(losses) < STEPS and training.samples_seen < training.total:
        training.tally = Tally()
        train_step(model, training, order, digits, how)
        losses.append(training.tally.reduced().loss)
    return losses


@pytest.mark.parametrize("batch", [40, 65, 100, 256])
def test_the_number_of_workers_does_not_change_the_losses(batch: int, small: Splits) -> None:
    """40 leaves one of three workers idle, 65 gives one a single sample, 100 unequal shares, 256 even ones for two."""
    rows = np.arange(0, 600, 2)
    args = (small.train.images[rows], small.train.labels[rows], batch)
    alone = run_workers(1, _losses, *args)[0]
    assert len(set(alone)) == len(alone) > 1
    for world in (2, 3):
        for losses in run_workers(world, _losses, *args):
            assert losses == pytest.approx(alone, abs=1e-9)


def _weights(training: state.TrainState) -> str:
    flat = torch.cat([tensor.reshape(-1).double() for tensor in training.model.state_dict().values()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def quiet_hooks(checkpoint: Callable[[state.TrainState], None], asked: Callable[[], loop.Request] | None = None) -> loop.Hooks:
    """Hooks that only keep checkpoints, and ask for what a test wants."""
    nothing = lambda *_: None  # noqa: E731
    return loop.Hooks(nothing, asked or (lambda: loop.Request.NOTHING), nothing, checkpoint, lambda: False)


class _KilledError(Exception):
    pass


def _train(run: str, splits: Splits, stop_at: int | None) -> str:
    """Train to the end, or to a checkpoint, from the newest checkpoint of the run; returns the digest of the weights."""
    config = TrainConfig(workers="0", epochs=3, global_batch_size=128, checkpoint_every="0.5")
    training = state.make_state(config, len(splits.train), CPU)
    found, warnings = state.newest(run, "meaning") if dist.rank() == 0 else (None, [])
    assert not warnings
    if saved := dist.broadcast_bytes(found):
        training.load_bytes(saved)

    def checkpoint(reached: state.TrainState) -> None:
        if dist.rank() == 0:
            state.save(run, reached, "meaning")
        if stop_at and reached.samples_seen >= stop_at:
            raise _KilledError

    try:
        assert loop.Loop(config, splits, training, CPU, quiet_hooks(checkpoint)).run()
    except _KilledError:
        return ""
    assert [row["epoch"] for row in training.history] == [1, 2, 3]
    assert [row["train_samples"] for row in training.history] == [640, 640, 520]
    assert training.samples_seen == 3 * len(splits.train)
    return _weights(training)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_continued_run_is_bit_equal_to_an_unbroken_one(world: int, small: Splits, tmp_path: Path) -> None:
    whole = run_workers(world, _train, str(tmp_path / "whole"), small, None)
    for stop_at in (300, 900):
        run_workers(world, _train, str(tmp_path / "broken"), small, stop_at)
    broken = run_workers(world, _train, str(tmp_path / "broken"), small, None)
    assert broken == whole
    assert len(set(whole)) == 1, "workers ended with different weights"


def test_a_continued_epoch_counts_every_workers_samples(small: Splits, tmp_path: Path) -> None:
    """A checkpoint in mid-epoch keeps what all workers have counted so far."""
    assert _history(1, small, tmp_path / "one") == pytest.approx(_history(2, small, tmp_path / "two"), abs=0.03)


def _history(world: int, splits: Splits, run: Path) -> list[float]:
    run_workers(world, _train, str(run), splits, 300)
    run_workers(world, _train, str(run), splits, None)
    saved, _ = state.newest(str(run), "meaning")
    assert saved is not None
    training = state.make_state(TrainConfig(), 600, CPU)
    training.load_bytes(saved)
    return [row["train_accuracy"] for row in training.history]


def _shared() -> tuple[int, bytes | None, bytes | None, float]:
    mine = b"state" if dist.rank() == 0 else None
    total = float(dist.all_reduce_sum(torch.tensor(float(dist.rank() + 1))))
    return dist.world(), dist.broadcast_bytes(mine), dist.broadcast_bytes(None), total


@pytest.mark.parametrize("world", [1, 2, 3])
def test_helpers_work_alone_and_together(world: int) -> None:
    assert run_workers(world, _shared) == [(world, b"state", None, world * (world + 1) / 2)] * world


def test_evaluation_counts_each_digit_once_however_few(small: Splits) -> None:
    training = state.make_state(TrainConfig(), 600, CPU)
    training.model.eval()
    for count in (1, 7, 100):
        digits = DeviceDigits.put(small.test.take(np.arange(count)), CPU)
        assert evaluate(training.model, digits).count == count


def _loop(config: TrainConfig, splits: Splits, hooks: loop.Hooks) -> loop.Loop:
    training = state.make_state(config, len(loop.split_validation(config, splits)[0]), CPU)
    return loop.Loop(config, splits, training, CPU, hooks)


@pytest.mark.parametrize(("ask", "saved"), [(loop.Request.STOP, 1), (loop.Request.LEAVE, 0)])
def test_a_run_stops_when_asked_and_saves_if_it_is_still_its_own(ask: loop.Request, saved: int, small: Splits) -> None:
    kept: list[int] = []
    hooks = quiet_hooks(lambda reached: kept.append(reached.samples_seen), lambda: ask)
    trainer = _loop(TrainConfig(workers="0", epochs=9, checkpoint_every="9"), small, hooks)
    assert not trainer.run()
    assert trainer.state.samples_seen == 128
    assert kept == [128] * saved


def test_a_time_budget_sets_the_length_and_the_schedule(small: Splits) -> None:
    trainer = _loop(TrainConfig(workers="0", seconds=3, lr=0.01), small, quiet_hooks(lambda reached: None))
    assert trainer.run()
    assert trainer.state.samples_seen == trainer.state.total
    assert 2 < trainer.state.train_seconds < 5
    assert trainer.state.history[-1]["lr"] < 0.001


def test_patience_ends_a_run_and_keeps_its_best_epoch(small: Splits) -> None:
    trainer = _loop(TrainConfig(workers="0", epochs=60, patience=2), small, quiet_hooks(lambda reached: None))
    assert trainer.run()
    scores = [row["validation_accuracy"] for row in trainer.state.history]
    assert len(scores) < 60
    assert loop.best_epoch(scores) == len(scores) - 3
    assert len(trainer.digits) == 540, "a tenth of the training digits is held out"
    trainer.state.model.load_state_dict(trainer.state.best)
    assert trainer.validation
    assert evaluate(trainer.state.model, trainer.validation).accuracy == max(scores)
    assert trainer.ended(), "it is still over when it is started again"


def test_a_continued_run_with_patience_remembers_its_best_epoch(small: Splits) -> None:
    config = TrainConfig(workers="0", epochs=60, patience=2)
    kept: list[bytes] = []
    whole = _loop(config, small, quiet_hooks(lambda reached: kept.append(reached.to_bytes())))
    assert whole.run()
    broken = _loop(config, small, quiet_hooks(lambda reached: None))
    broken.state.load_bytes(kept[1])
    assert broken.run()
    assert broken.state.history[2:] != []
    scores = [[row["validation_accuracy"] for row in trainer.state.history] for trainer in (whole, broken)]
    assert scores[0] == scores[1]
    assert all(torch.equal(whole.state.best[name], tensor) for name, tensor in broken.state.best.items())
    assert _weights(whole.state) == _weights(broken.state)
