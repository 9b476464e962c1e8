"""A TrainConfig to a run: in this process, or as a Ray Train job with one process per worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from mnist_ray.cluster import progress, runtime
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.datasets import load
from mnist_ray.data.digits import Splits
from mnist_ray.data.order import GROUP_SIZE, num_groups
from mnist_ray.errors import ClusterError, OutputError, UsageError

if TYPE_CHECKING:
    from mnist_ray.learn.state import TrainState

MAX_FAILURES = 3
"""Times that lost workers are replaced before the job gives up; it can be continued by hand."""

Report = Callable[[dict[str, float], str | None], None]


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run a training job, or continue it, to its end and return its metrics. Raises MnistRayError."""
    run = storage.absolute(config.run_directory())
    _require_shares(config)
    if (done := finished(run, config)) is not None:
        console.line(f"{run} is done: nothing to train")
        return done
    splits = load(config.data, console.line)
    runtime.warn_of_lost_output(config.run_directory(), console)
    _require_same_data(run, splits)
    if config.workers == 0:
        work(run, config, splits, on_progress=progress.Shown(console).update)
    else:
        with runtime.cluster(config.address):
            _train_on_ray(run, config, runtime.resources(config.workers, config.device), splits, console)
    metrics: dict[str, Any] = storage.read_json(storage.join(run, "metrics.json"))
    return metrics


def _require_shares(config: TrainConfig) -> None:
    groups = num_groups(config.global_batch_size)
    if config.workers > groups:
        raise UsageError(
            f"--workers {config.workers} --global-batch-size {config.global_batch_size}: a batch is divided in groups of "
            f"{GROUP_SIZE}, so it has work for {groups}; give at least --global-batch-size {config.workers * GROUP_SIZE}"
        )


def _require_same_data(run: str, splits: Splits) -> None:
    """Refuse to continue a run on other digits than it began with."""
    with suppress(FileNotFoundError):
        began_with = storage.read_json(storage.join(run, "config.json")).get("data_sha256")
        if began_with != splits.train.digest:
            raise OutputError(f"{run}: its run began with other digits than {splits.origin} holds now; give another --out")


def finished(run: str, config: TrainConfig) -> dict[str, Any] | None:
    """The metrics of a run that has ended; None if it has not. Raises OutputError if the folder holds another run."""
    try:
        held = storage.read_json(storage.join(run, "config.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise OutputError(f"{run}/config.json: is damaged; give another --out, or delete the folder to start anew") from None
    wanted = config.meaning()
    if other := sorted(name for name in wanted if held.get(name) != wanted[name]):
        changes = ", ".join(f"{name} {held.get(name)} -> {wanted[name]}" for name in other)
        raise OutputError(f"{run}: holds a run with other settings ({changes}); give another --out, or delete it to start anew")
    try:
        metrics: dict[str, Any] = storage.read_json(storage.join(run, "metrics.json"))
    except (FileNotFoundError, ValueError):
        return None
    return metrics


def work(
    run: str,
    config: TrainConfig,
    splits: Splits,
    on_progress: Callable[[dict[str, Any]], None],
    report: Report = lambda metrics, checkpoint: None,
) -> None:
    """One worker's part of a run, from the newest checkpoint to the end; rank 0 writes what the run leaves behind."""
    from mnist_ray.artifact.finish import finish
    from mnist_ray.artifact.history import History
    from mnist_ray.artifact.predictor import pick_device
    from mnist_ray.learn import dist, loop, state

    device = pick_device(config.device)
    meaning = f"{config.fingerprint()} {splits.train.digest} {splits.test.digest}"
    chief = dist.rank() == 0
    if chief:
        origin = {"data_name": splits.name, "data_sha256": splits.train.digest}
        storage.write_json(storage.join(run, "config.json"), {**asdict(config), **origin})
    training = loop.make_state(config, device)
    history = History(run)
    found, warnings = state.newest(run, meaning) if chief else (None, [])
    if (saved := dist.broadcast_bytes(found)) is not None:
        training.load_bytes(saved)
    total = len(splits.train) * config.epochs

    def tick(training: TrainState, loss: float) -> None:
        if chief:
            speed = training.samples_seen / max(training.train_seconds, 1e-9)
            seen = {"samples_seen": training.samples_seen, "total": total, "epochs": config.epochs, "loss": loss}
            on_progress({**seen, "samples_per_second": speed, "history": training.history, "warnings": warnings})

    def epoch(training: TrainState) -> None:
        if chief:
            history.write(training.history)
        tick(training, training.history[-1]["train_loss"])

    def checkpoint(training: TrainState) -> None:
        place = state.save(run, training, meaning) if chief else None
        report(training.history[-1] if training.history else {}, place)

    loop.train(config, splits, training, device, loop.Hooks(tick, epoch, checkpoint))
    if chief:
        history.write(training.history)
        finish(run, config, splits, training, device)
    dist.barrier()  # the others' exit would end rank 0's process group under it


def _train_on_ray(run: str, config: TrainConfig, needs: dict[str, float], splits: Splits, console: Console) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # Our checkpoint folder is Ray's experiment folder, so that Ray may refer to checkpoints without copying them. Its own
    # record of an earlier launch would make it resume by itself, from a file that a kill can leave half-written.
    experiment = storage.join(run, "checkpoints")
    storage.delete(storage.join(experiment, "checkpoint_manager_snapshot.json"))
    progress.clear(run)
    gpu = "GPU" in needs
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run, "config": config, "splits": ray.put(splits)},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker=needs),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=run,
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),  # type: ignore[call-arg]
        ),
    )
    with progress.following(run, console):
        try:
            trainer.fit()
        except Exception as error:
            raise runtime.own_error(error) or ClusterError(
                f"training stopped: {_last_line(error)}; lost workers are replaced up to {MAX_FAILURES} times; "
                f"run the same command again to continue from the newest checkpoint in {run}"
            ) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().rsplit("\n", 1)[-1]


def _worker(launch: dict[str, Any]) -> None:
    """What Ray Train runs in each worker process."""
    import ray
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    def report(metrics: dict[str, float], place: str | None) -> None:
        checkpoint = Checkpoint(place) if place else None
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    work(launch["run"], launch["config"], ray.get(launch["splits"]), partial(progress.publish, launch["run"]), report)
