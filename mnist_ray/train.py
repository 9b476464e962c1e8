"""A TrainConfig to a run: in this process, or as a Ray Train job with one process per worker."""

from __future__ import annotations

import importlib
import signal
import threading
from dataclasses import asdict
from typing import Any

from mnist_ray.artifact import seal
from mnist_ray.cluster import runtime
from mnist_ray.cluster.fit import fit
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.datasets import load
from mnist_ray.data.digits import Splits, hold_out
from mnist_ray.data.order import GROUP_SIZE, num_groups
from mnist_ray.errors import ModelError, OutputError, StoppedError, StorageError, UsageError
from mnist_ray.flags import worker_range
from mnist_ray.run.owner import Owner, owning
from mnist_ray.run.worker import LocalControl, work


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run a training job, or continue it, to its end and return its metrics. Raises MnistRayError."""
    run = storage.absolute(config.run_directory())
    if (done := finished(run, config)) is not None:
        console.line(f"{run} is done: nothing to train")
        return done
    splits = load(config.data, console.line)
    if config.patience:
        hold_out(splits.train, splits.origin)  # what cannot be divided is refused before anything is written
    runtime.warn_of_lost_output(config.run_directory(), console)
    launch = _launch_here if worker_range(config.workers)[1] == 0 else _launch_on_ray
    ended = launch(run, config, splits, console)
    if ended and (metrics := finished(run, config)) is not None:
        return metrics
    raise StorageError(f"{run}: what the workers wrote is not to be seen from here; give an --out that all nodes share")


def _launch_here(run: str, config: TrainConfig, splits: Splits, console: Console) -> bool:
    from mnist_ray.artifact.predictor import pick_device

    pick_device(config.device)  # a device that is not there is refused before anything is written
    with owning(run) as owner:
        _enter(run, config, splits)
        ended = work(run, config, config.device, splits, LocalControl(owner, console))
        owner.require()
        _require_unasked(run, owner, ended)
    return ended


def _launch_on_ray(run: str, config: TrainConfig, splits: Splits, console: Console) -> bool:
    threading.Thread(target=importlib.import_module, args=("ray.train.torch",)).start()  # seconds, while Ray starts
    with runtime.cluster(config.address) as owns_cluster:
        needs = runtime.resources(*worker_range(config.workers), config.device)
        _require_shares(config)  # after it: more batch is no advice where there are too few CPUs
        with owning(run) as owner:
            _enter(run, config, splits)
            ended = fit(run, config, splits, needs, owner, console, owns_cluster=owns_cluster)
            _require_unasked(run, owner, ended)
    return ended


def _require_unasked(run: str, owner: Owner, ended: bool) -> None:
    """Raise what a job that a signal has stopped ends with."""
    if owner.signal is None or ended:
        return
    if owner.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedError(f"{run}: stopped as asked; run the same command again to continue from its newest checkpoint")


def _require_shares(config: TrainConfig) -> None:
    size, (_, most) = config.settings().global_batch_size, worker_range(config.workers)
    if most > (groups := num_groups(size)):
        raise UsageError(
            f"--workers {config.workers} --global-batch-size {size}: a batch is divided in groups of {GROUP_SIZE}, so it has "
            f"work for {groups}; give at least --global-batch-size {most * GROUP_SIZE}"
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
    _require_same(run, held, config)
    try:
        metrics: dict[str, Any] = storage.read_json(storage.join(run, "metrics.json"))
        whole = metrics["fingerprint"] == config.fingerprint() and bool(seal.find(run))
    except (FileNotFoundError, ValueError, KeyError, TypeError, ModelError):
        return None
    return metrics if whole else None


def _require_same(run: str, held: dict[str, Any], config: TrainConfig) -> None:
    """Raise OutputError if the run directory was begun with other settings."""
    wanted, begun = config.identity(), held.get("meaning", {})
    if other := sorted(name for name in wanted if begun.get(name) != wanted[name]):
        changes = ", ".join(f"{name} {begun.get(name)} -> {wanted[name]}" for name in other)
        raise OutputError(f"{run}: holds a run with other settings ({changes}); give another --out, or delete it to start anew")


def _enter(run: str, config: TrainConfig, splits: Splits) -> None:
    """Write the run's settings, or refuse to continue it on other digits than it began with."""
    origin = {"data_name": splits.name, "data_sha256": [splits.train.digest, splits.test.digest]}
    if held := _held(run):
        _require_same(run, held, config)  # another job may have begun it since it was looked at
        if held.get("data_sha256") != origin["data_sha256"]:
            raise OutputError(f"{run}: its run began with other digits than {splits.origin} holds now; give another --out")
    storage.write_json(storage.join(run, "config.json"), {"flags": asdict(config), "meaning": config.identity(), **origin})
