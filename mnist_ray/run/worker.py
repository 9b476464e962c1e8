"""One worker's part of a training run, in a process of Ray Train or, without Ray, in the driver's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from mnist_ray.config import Device, TrainConfig
from mnist_ray.data.digits import Splits
from mnist_ray.errors import MnistRayError, StorageError, from_status

T = TypeVar("T")


@dataclass(frozen=True)
class Surroundings:
    """How a worker speaks with what runs it."""

    stopping: Callable[[], bool]
    """Rank 0: whether the job was asked to stop."""
    lost: Callable[[], bool]
    """Rank 0: whether the run directory belongs to another job by now."""
    show: Callable[[dict[str, Any]], None]
    """Rank 0: show the progress record."""
    require: Callable[[], None] = lambda: None
    """Rank 0, before what it writes may touch what another job wrote: raises OutputError if the directory is that job's."""
    leaving: Callable[[], bool] = lambda: False
    """All workers: whether a node of theirs is about to be taken away."""


def work(run: str, config: TrainConfig, where: Device, splits: Splits, around: Surroundings) -> bool:
    """Train from the newest checkpoint to the end, or until asked to stop; whether the run ended, its results written.

    Raises MnistRayError on every worker if rank 0 meets one.
    """
    from mnist_ray.artifact.finish import finish
    from mnist_ray.artifact.history import History
    from mnist_ray.artifact.predictor import pick_device
    from mnist_ray.learn import dist, loop, state
    from mnist_ray.learn.model import ARCHITECTURE

    device = pick_device(where)
    identity = f"{ARCHITECTURE} {config.fingerprint()} {splits.train.digest} {splits.test.digest}"
    chief = dist.rank() == 0
    num_samples = len(loop.split_validation(config, splits)[0])
    training = state.make_state(config, num_samples, device)
    history = History(run)
    found, warnings = _on_chief(lambda: state.newest(run, identity)) or (None, [])
    if (saved := dist.broadcast_bytes(found)) is not None:
        training.load_bytes(saved)

    def tick(training: state.TrainState, loss: float) -> None:
        if chief:
            names = ("samples_seen", "total", "history")
            speed = training.samples_seen / max(training.train_seconds, 1e-9)
            epochs = training.total / num_samples
            seen = {name: getattr(training, name) for name in names}
            around.show({**seen, "epochs": epochs, "loss": loss, "samples_per_second": speed, "warnings": warnings})

    def asked() -> loop.Request:
        stop = loop.Request.STOP if around.stopping() else loop.Request.NOTHING
        return loop.Request.LEAVE if around.lost() else stop

    def epoch(training: state.TrainState) -> None:
        if chief:
            with suppress(StorageError):  # it is written whole again at the end
                history.write(training.history)
        tick(training, training.history[-1]["train_loss"])

    def checkpoint(training: state.TrainState) -> None:
        def write() -> None:
            around.require()
            state.save(run, training, identity)

        _on_chief(write)

    def end() -> None:
        around.require()
        history.write(training.history)
        finish(run, config, splits, training, device)

    if not loop.Loop(config, splits, training, device, loop.Hooks(tick, asked, epoch, checkpoint, around.leaving)).run():
        return False
    _on_chief(end)
    return True


def _on_chief(task: Callable[[], T]) -> T | None:
    """What a task returns on rank 0, None elsewhere. An error of ours there is raised on every worker: none waits for it."""
    from mnist_ray.learn import dist

    result, failure = None, None
    if dist.rank() == 0:
        try:
            result = task()
        except MnistRayError as error:
            failure = error
    (status,) = dist.from_chief([failure.exit_status if failure else 0])
    if status:
        raise failure or from_status(status, "rank 0 failed")
    return result
