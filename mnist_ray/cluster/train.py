"""A TrainConfig to a run: in this process, or as a Ray Train job with one process per worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mnist_ray.artifact import seal
from mnist_ray.cluster import progress, runtime
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.datasets import load
from mnist_ray.data.digits import Splits
from mnist_ray.data.order import GROUP_SIZE, num_groups
from mnist_ray.errors import ClusterError, ModelError, OutputError, StorageError, UsageError, first_line

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
    if config.workers == 0:
        from mnist_ray.artifact.predictor import pick_device

        pick_device(config.device)  # a device that is not there is refused before anything is written
        _enter(run, config, splits)
        work(run, config, splits, on_progress=progress.Shown(console).update)
    else:
        with runtime.cluster(config.address):
            needs = runtime.resources(config.workers, config.device)
            _enter(run, config, splits)
            _train_on_ray(run, replace(config, device=runtime.granted_device(needs)), needs, splits, console)
    if (metrics := finished(run, config)) is None:
        raise StorageError(f"{run}: what the workers wrote is not to be seen from here; give an --out that all nodes share")
    return metrics


def _require_shares(config: TrainConfig) -> None:
    groups = num_groups(config.global_batch_size)
    if config.workers > groups:
        raise UsageError(
            f"--workers {config.workers} --global-batch-size {config.global_batch_size}: a batch is divided in groups of "
            f"{GROUP_SIZE}, so it has work for {groups}; give at least --global-batch-size {config.workers * GROUP_SIZE}"
        )


def _held(run: str) -> dict[str, Any]:
    """The settings that the run directory was begun with; none if it is new. Raises OutputError for a damaged record."""
    try:
        held = storage.read_json(storage.join(run, "config.json"))
    except FileNotFoundError:
        return {}
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise OutputError(f"{run}/config.json: is damaged; give another --out, or delete the folder to start anew")
    return held


def finished(run: str, config: TrainConfig) -> dict[str, Any] | None:
    """The metrics of a run that has ended; None if it has not. Raises OutputError if the folder holds another run."""
    if not (held := _held(run)):
        return None
    wanted = config.meaning()
    if other := sorted(name for name in wanted if held.get(name) != wanted[name]):
        changes = ", ".join(f"{name} {held.get(name)} -> {wanted[name]}" for name in other)
        raise OutputError(f"{run}: holds a run with other settings ({changes}); give another --out, or delete it to start anew")
    try:
        metrics: dict[str, Any] = storage.read_json(storage.join(run, "metrics.json"))
        whole = metrics["fingerprint"] == config.fingerprint() and bool(seal.find(run))
    except (FileNotFoundError, ValueError, KeyError, TypeError, ModelError):
        return None
    return metrics if whole else None


def _enter(run: str, config: TrainConfig, splits: Splits) -> None:
    """Write the run's settings, or refuse to continue it on other digits than it began with."""
    origin = {"data_name": splits.name, "data_sha256": [splits.train.digest, splits.test.digest]}
    held = _held(run)
    if held and held.get("data_sha256") != origin["data_sha256"]:
        raise OutputError(f"{run}: its run began with other digits than {splits.origin} holds now; give another --out")
    storage.write_json(storage.join(run, "config.json"), {**asdict(config), **origin})


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
    filesystem, path = storage.resolve(run)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run, "config": config, "splits": ray.put(splits)},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu="GPU" in needs, resources_per_worker=needs),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),  # type: ignore[call-arg]
        ),
    )
    with progress.following(run, console):
        try:
            trainer.fit()
        except SystemExit:  # Ray's way of taking Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:
            raise runtime.own_error(error) or ClusterError(
                f"training stopped: {first_line(error)}; lost workers are replaced up to {MAX_FAILURES} times; "
                f"run the same command again to continue from the newest checkpoint in {run}"
            ) from error


def _worker(launch: dict[str, Any]) -> None:
    """What Ray Train runs in each worker process."""
    import ray
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    def report(metrics: dict[str, float], place: str | None) -> None:
        checkpoint = Checkpoint(*reversed(storage.resolve(place))) if place else None
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    work(launch["run"], launch["config"], ray.get(launch["splits"]), partial(progress.publish, launch["run"]), report)
