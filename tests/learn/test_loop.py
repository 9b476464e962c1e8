"""Training gives the same result with any number of workers, and with or without interruptions."""

import hashlib
import io
import itertools
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.data.order import SampleOrder
from mnist_ray.errors import OutputError, UsageError
from mnist_ray.flags import Precision
from mnist_ray.learn import dist, state
from mnist_ray.learn.control import PeersLostError, Request, RunControl
from mnist_ray.learn.loop import Loop
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.model import DigitCNN
from mnist_ray.learn.optim import Optimizer
from mnist_ray.learn.step import DeviceDigits, evaluate, learner, train_step
from tests.learn.gloo import run_workers

CPU = torch.device("cpu")
STEPS = 12


def _losses(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], batch: int) -> list[float]:
    """The global mean loss of each of the first steps, computed in float64."""
    config = TrainConfig(workers="0", epochs=2, global_batch_size=batch)
    recipe = config.settings()
    training = state.make_state(config, len(labels), CPU)
    training.model.double()
    training.optimizer = Optimizer(training.model, recipe)
    order = SampleOrder(len(labels), batch, config.seed)
    digits = DeviceDigits.put(LabelledDigits(images, labels), CPU)
    learn = learner(dist.wrap(training.model.train(), digits.images[:32]), training, digits, recipe)
    losses: list[float] = []
    while len(losses) < STEPS and training.samples_seen < training.total:
        training.tally = Tally()
        train_step(learn, training, order, recipe)
        losses.append(training.tally.reduced().loss)
    return losses


@pytest.mark.parametrize("batch", [65, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (40, 100, 256))])
def test_the_number_of_workers_does_not_change_the_losses(batch: int, small: Splits) -> None:
    """On 3 workers, a batch of 40 leaves one idle, and 65 gives one a single sample. On 2, only 256 divides equally."""
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


class InterruptingControl(RunControl):
    """Ends a run with an OutputError once this many checkpoints were written."""

    def __init__(self, run: str, checkpoints: int) -> None:
        self.run, self.left = run, checkpoints
        self.known = set(storage.names(f"{run}/checkpoints"))

    def requested(self) -> Request:
        if len(set(storage.names(f"{self.run}/checkpoints")) - self.known) >= self.left:
            raise OutputError("interrupted")
        return Request.NOTHING


def _interrupt(trainer: Loop) -> None:
    """Train with an `InterruptingControl`, which is asked after every step."""
    trainer._agree_steps = 1
    with pytest.raises(OutputError):
        trainer.run()


def _train(run: str, splits: Splits, checkpoints: int | None) -> str:
    """Train from the newest checkpoint to the end, or until some more checkpoints are written; returns the weights' digest."""
    config = TrainConfig(workers="0", epochs=3, global_batch_size=128, checkpoint_every="0.5")
    control = RunControl() if checkpoints is None else InterruptingControl(run, checkpoints)
    trainer = Loop(run, config, splits, CPU, control)
    assert not trainer.warnings
    if checkpoints is not None:
        _interrupt(trainer)
        return ""
    assert trainer.run()
    assert [row["epoch"] for row in trainer.state.history] == [1, 2, 3]
    assert [row["train_samples"] for row in trainer.state.history] == [640, 640, 520]
    assert trainer.state.samples_seen == 3 * len(splits.train)
    return _weights(trainer.state)


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_continued_run_is_bit_equal_to_an_uninterrupted_one(world: int, small: Splits, tmp_path: Path) -> None:
    uninterrupted = run_workers(world, _train, str(tmp_path / "uninterrupted"), small, None)
    for checkpoints in (1, 2):
        run_workers(world, _train, str(tmp_path / "continued"), small, checkpoints)
    continued = run_workers(world, _train, str(tmp_path / "continued"), small, None)
    assert continued == uninterrupted
    assert len(set(uninterrupted)) == 1, "workers have different weights"


def test_a_continued_epoch_counts_every_workers_samples(small: Splits, tmp_path: Path) -> None:
    """A checkpoint in the middle of an epoch keeps the counts of all workers."""
    assert _history(1, small, tmp_path / "one") == pytest.approx(_history(2, small, tmp_path / "two"), abs=0.03)


def _history(world: int, splits: Splits, run: Path) -> list[float]:
    run_workers(world, _train, str(run), splits, 1)
    run_workers(world, _train, str(run), splits, None)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [row["train_accuracy"] for row in rows]


def _fail() -> None:
    raise OutputError("rank 0 says why")


def _collectives() -> tuple[int, int, object, float]:
    total = float(dist.all_reduce_sum(torch.tensor(float(dist.rank() + 1))))
    with pytest.raises(OutputError, match="rank 0 says why"):
        dist.on_rank_0(_fail)
    return dist.world(), dist.on_rank_0(dist.rank), dist.on_rank_0(lambda: (Request.SAVE | Request.STOP, b"state")), total


@pytest.mark.parametrize("world", [1, 2, 3])
def test_collectives_work_with_any_number_of_workers(world: int) -> None:
    assert run_workers(world, _collectives) == [(world, 0, (3, b"state"), world * (world + 1) / 2)] * world


def _gradient() -> bytes:
    """The gradient, averaged over the workers, of a linear layer whose gradient on each worker is its input."""
    torch.manual_seed(0)
    inputs = torch.randn(dist.world(), 4000)
    model = dist.wrap(nn.Linear(4000, 1, bias=False), inputs[:1])
    dist.backward(model(inputs[dist.rank()]).sum())
    (gradient,) = (parameter.grad for parameter in model.parameters())
    assert gradient is not None
    torch.testing.assert_close(gradient[0], inputs.mean(0))
    return gradient.numpy().tobytes()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_workers_hold_the_same_mean_gradient_to_the_last_bit(world: int) -> None:
    assert len(set(run_workers(world, _gradient))) == 1


def _left_alone() -> None:
    if dist.rank() == 0:
        with pytest.raises(PeersLostError):
            dist.all_reduce_sum(torch.zeros(1))


def test_a_worker_notices_that_another_one_is_gone() -> None:
    run_workers(2, _left_alone)


def _left_alone_in_the_backward_pass() -> None:
    model = dist.wrap(nn.Linear(2, 1), torch.zeros(1, 2))
    loss = model(torch.ones(1, 2)).sum()
    if dist.rank() == 0:
        with pytest.raises(PeersLostError):
            dist.backward(loss)


def test_a_worker_notices_in_the_backward_pass_that_another_one_is_gone() -> None:
    run_workers(2, _left_alone_in_the_backward_pass)


def _defect_in_the_backward_pass() -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("a defect of the network")

    model = dist.wrap(nn.Linear(2, 1), torch.zeros(1, 2))
    output = model(torch.ones(1, 2))
    output.register_hook(fail)
    with pytest.raises(RuntimeError, match="a defect of the network"):
        dist.backward(output.sum())


def test_a_defect_in_the_backward_pass_is_not_taken_for_a_lost_worker() -> None:
    """Another start of the workers would meet it again."""
    run_workers(2, _defect_in_the_backward_pass)


def test_evaluation_counts_each_digit_once(small: Splits) -> None:
    training = state.make_state(TrainConfig(), 600, CPU)
    training.model.eval()
    for size in (1, 7, 100):
        digits = DeviceDigits.put(small.test.take(np.arange(size)), CPU)
        assert evaluate(training.model, digits).count == size


def _saved(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("checkpoints/*/commit.json"))


class AskingControl(RunControl):
    """Always makes the same request."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def requested(self) -> Request:
        return self.request


@pytest.mark.parametrize(("asked", "saved"), [(Request.STOP, ["samples-000000000128"]), (Request.ABANDON, [])])
def test_a_run_stops_when_asked_and_saves_if_it_still_owns_its_directory(
    asked: Request, saved: list[str], small: Splits, tmp_path: Path
) -> None:
    config = TrainConfig(workers="0", epochs=9, checkpoint_every="9")
    trainer = Loop(str(tmp_path), config, small, CPU, AskingControl(asked))
    assert not trainer.run()
    assert trainer.state.samples_seen == 128
    assert _saved(tmp_path) == saved


def _diverge(run: str, splits: Splits, lr: float) -> str:
    """Train with weights that become NaN; returns the error."""
    config = TrainConfig(workers="0", epochs=20, lr=lr, weight_decay=9, checkpoint_every="1step")
    with pytest.raises(UsageError) as error:
        Loop(run, config, splits, CPU, RunControl()).run()
    return str(error.value)


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_diverges_ends_on_every_worker_and_saves_only_finite_weights(
    world: int, small: Splits, tmp_path: Path
) -> None:
    errors = run_workers(world, _diverge, str(tmp_path), small, 99.0)
    assert len(set(errors)) == 1
    assert re.fullmatch(
        r"--lr 99: training has diverged: the .* is (nan|-?inf) at step \d+, where the learning rate is [\d.]+; "
        "start again with a smaller --lr and another --out",
        errors[0],
    )
    saved, _ = state.newest_checkpoint(str(tmp_path), _identity_of(tmp_path))
    assert saved
    assert all(torch.isfinite(tensor).all() for tensor in torch.load(io.BytesIO(saved))["model"].values())


def test_an_optimizer_whose_state_is_not_finite_ends_the_run(small: Splits, tmp_path: Path) -> None:
    """A gradient of 1e20 makes the second moment infinite. Its weight stays finite, and never changes again."""
    loop = Loop(str(tmp_path), TrainConfig(workers="0", epochs=3), small, CPU, RunControl())
    weight = loop.state.model.head.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), 1e20))
    with pytest.raises(UsageError, match="training has diverged: the sum of the optimizer's exp_avg_sq is inf"):
        loop.run()
    assert torch.isfinite(weight).all()
    assert not _saved(tmp_path)


def _identity_of(run: Path) -> str:
    return str(json.loads(next(run.glob("checkpoints/*/commit.json")).read_text())["meaning"])


def test_a_loss_that_is_not_finite_is_noticed_between_checkpoints(
    small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint and no end of an epoch is near: the loss is checked when the workers agree."""
    monkeypatch.setattr("mnist_ray.learn.loop.train_step", _step_without_a_loss)
    trainer = Loop(str(tmp_path), TrainConfig(workers="0", epochs=400, checkpoint_every="400"), small, CPU, RunControl())
    with pytest.raises(UsageError, match="the loss is nan at step 1, where the learning rate is"):
        trainer.run()
    assert not _saved(tmp_path)


def _step_without_a_loss(learn: object, training: state.TrainState, *_: object) -> torch.Tensor:
    training.samples_seen += 128
    return torch.tensor(math.nan)


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_that_continues_on_other_hardware_keeps_its_precision(
    first: bool, then: bool, small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = TrainConfig(workers="0", epochs=9, checkpoint_every="9"), "bfloat16" if first else "float32"
    monkeypatch.setattr(state, "_has_bfloat16", lambda device: first)
    started = Loop(str(tmp_path), config, small, CPU, AskingControl(Request.STOP))
    assert not started.run()
    monkeypatch.setattr(state, "_has_bfloat16", lambda device: then)
    continued = Loop(str(tmp_path), config, small, CPU, RunControl())
    assert (started.state.precision, continued.state.precision) == (expected, expected)
    slow = ["the run computes in bfloat16, which a worker's hardware emulates: this is slow"]
    assert (started.warnings, continued.warnings) == ([], slow if first else [])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_given_precision_is_used_on_any_hardware(precision: Precision, small: Splits, tmp_path: Path) -> None:
    config = TrainConfig(workers="0", precision=precision)
    assert Loop(str(tmp_path), config, small, CPU, RunControl()).state.precision == precision
    assert config.fingerprint() != TrainConfig(workers="0").fingerprint()


def test_a_time_budget_sets_the_length_and_the_schedule(small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=itertools.count(0, 0.1).__next__)  # each step takes 0.1 s
    monkeypatch.setattr("mnist_ray.learn.loop.time", clock)
    trainer = Loop(str(tmp_path), TrainConfig(workers="0", seconds=3, lr=0.01), small, CPU, RunControl())
    assert trainer.run()
    assert trainer.state.samples_seen == trainer.state.total
    assert trainer.state.train_seconds == pytest.approx(3, abs=0.1)
    assert trainer.state.history[-1]["lr"] < 0.001


def test_a_slow_first_step_does_not_end_a_time_budget(small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0.0]

    def step(*args: Any) -> torch.Tensor:
        steps.append(steps[-1] + (2.0 if len(steps) == 1 else 0.1))
        return train_step(*args)

    monkeypatch.setattr("mnist_ray.learn.loop.train_step", step)
    monkeypatch.setattr("mnist_ray.learn.loop.time", SimpleNamespace(monotonic=lambda: steps[-1]))
    trainer = Loop(str(tmp_path), TrainConfig(workers="0", seconds=3), small, CPU, RunControl())
    assert trainer.run()
    assert trainer.state.train_seconds == pytest.approx(3, abs=0.15)
    assert len(steps) == 1 + 11


PATIENT = TrainConfig(workers="0", epochs=60, patience=2)


def _validation(trainer: Loop) -> list[float]:
    return [row["validation_accuracy"] for row in trainer.state.history]


@pytest.fixture(scope="module")
def patient(small: Splits, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A finished run with `--patience`, which ended before its last epoch."""
    trainer = Loop(str(tmp_path_factory.mktemp("patient")), PATIENT, small, CPU, RunControl())
    assert trainer.run()
    return trainer


def test_patience_ends_a_run_and_keeps_the_best_epoch(patient: Loop) -> None:
    scores = _validation(patient)
    assert len(scores) < 60
    assert scores.index(max(scores)) == len(scores) - 3
    assert len(patient.digits) == 540, "a tenth of the training digits is held out"
    best = DigitCNN(patient.recipe.layers).eval()
    best.load_state_dict(patient.state.best)
    assert patient.validation
    assert evaluate(best, patient.validation).accuracy == max(scores)
    assert patient.ended(), "a finished run does not train again"


@pytest.mark.slow
def test_a_continued_run_with_patience_keeps_the_best_epoch(patient: Loop, small: Splits, tmp_path: Path) -> None:
    _interrupt(Loop(str(tmp_path), PATIENT, small, CPU, InterruptingControl(str(tmp_path), 2)))
    continued = Loop(str(tmp_path), PATIENT, small, CPU, RunControl())
    assert len(continued.state.history) == 2
    assert continued.run()
    assert len(continued.state.history) > 2
    assert _validation(continued) == _validation(patient)
    assert all(torch.equal(patient.state.best[name], tensor) for name, tensor in continued.state.best.items())
    assert _weights(continued.state) == _weights(patient.state)


def _compiler_after_a_step(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], batch: int) -> bool:
    _losses(images, labels, batch)
    return "torch._dynamo" in sys.modules


def test_training_does_not_load_the_compiler_of_pytorch(small: Splits) -> None:
    assert run_workers(2, _compiler_after_a_step, small.train.images[:64], small.train.labels[:64], 64) == [False, False]
