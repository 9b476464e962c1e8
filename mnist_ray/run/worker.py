"""One worker's part of a training run, in the driver's own process or in a process of Ray Train."""

from typing import TYPE_CHECKING, Any

from mnist_ray.config import Device, TrainConfig
from mnist_ray.console import Console
from mnist_ray.data.digits import Splits
from mnist_ray.errors import first_line
from mnist_ray.learn.control import Request, RunControl
from mnist_ray.run import owner
from mnist_ray.run.ahead import import_ahead
from mnist_ray.run.lean import few_objects_to_collect
from mnist_ray.run.progress import ProgressPrinter

if TYPE_CHECKING:
    import torch

    from mnist_ray.learn.loop import Loop


def work(run: str, config: TrainConfig, device: Device, splits: Splits, control: RunControl) -> bool:
    """Train from the newest checkpoint until the run ends or is asked to stop; returns whether it ended and wrote its results.

    Raises MnistRayError, on every worker if it occurs on rank 0, and PeersLostError if another worker is gone.
    """
    with few_objects_to_collect():
        from mnist_ray.artifact.predictor import pick_device, usual_torch
        from mnist_ray.learn import dist
        from mnist_ray.learn.loop import Loop

        torch_device = pick_device(device)
        with usual_torch(), dist.group(control.meeting, torch_device.type):
            loop = Loop(run, config, splits, torch_device, control)
            if ended := loop.run():
                dist.on_rank_0(lambda: _write_results(run, config, splits, loop, torch_device))
    return ended


def _write_results(run: str, config: TrainConfig, splits: Splits, loop: "Loop", device: "torch.device") -> None:
    """Write what a finished run leaves: its history, bundle, metrics and report. Raises StorageError."""
    from mnist_ray.artifact.finish import finish

    import_ahead("mnist_ray.report.training")
    loop.history.write(loop.state.history)
    metrics, predictions = finish(run, config, splits, loop.state, device)
    try:
        from mnist_ray.report.facts import collect
        from mnist_ray.report.training import write

        write(run, collect(run, config, splits, loop.state, metrics, predictions))
    except Exception as error:  # the run is finished, whatever happens to its report
        loop.warnings.append(f"the training report was not written: {type(error).__name__}: {first_line(error)}")
        loop.show(loop.state.history[-1]["train_loss"])


class LocalControl(RunControl):
    """Control of a run that trains in the driver's own process."""

    def __init__(self, job: owner.Owner, console: Console) -> None:
        self._owner, self._printer = job, ProgressPrinter(console)

    def requested(self) -> Request:
        """STOP after a signal, ABANDON if another job has taken the run directory over."""
        if self._owner.lost:
            return Request.ABANDON
        return Request.NOTHING if self._owner.signal is None else Request.STOP

    def show(self, record: dict[str, Any]) -> None:
        """Print the progress on the console."""
        self._printer.update(record)
