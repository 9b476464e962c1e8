"""The training job: in this process, or as a Ray Train job with one process per worker."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from mnist_ray.artifact import seal
from mnist_ray.cluster import capacity, runtime
from mnist_ray.cluster.fit import fit
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.datasets import load
from mnist_ray.data.digits import Splits, hold_out
from mnist_ray.data.order import GROUP_SIZE, num_groups
from mnist_ray.errors import DataError, ModelError, OutputError, StorageError, UsageError
from mnist_ray.flags import output_folder, worker_range
from mnist_ray.recipes import RECIPES
from mnist_ray.run.ahead import import_ahead
from mnist_ray.run.owner import Owner, owning
from mnist_ray.run.worker import LocalControl, work

FEW_STEPS = 40
"""Optimizer steps below which a run is too short for its data.

Measured: test accuracy in % on mnist5k's 500 test digits, mean of 3 seeds, batches of 128 samples.

| recipe, training digits | 2 steps | 5 | 10 | 20 | 40 | 80 | 160 |
|---|---|---|---|---|---|---|---|
| fast, 450 | 44 | 68 | 80 | 93 | 95 | 95 | 96 |
| fast, 1,500 | 51 | 65 | 81 | 94 | 97 | 98 | 98 |
| standard, 450 | 47 | 78 | 89 | 94 | 96 | 97 | 98 |

The accuracy falls fast below 40 steps, and hardly rises above, for both recipes and both numbers of digits.
"""

_OF_OTHERS = {"plan.json": "a prediction table", "digest.json": "a model bundle"}
"""Files that tell what else a folder holds (`scoring.plan` and `artifact.seal`)."""
_RESULTS = {"history.jsonl", "metrics.json", "model", "report.html"}
"""What a run writes after its settings. Without settings and checkpoints, they are of somebody else."""


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run or continue a training job and return its metrics. Raises MnistRayError."""
    run = storage.absolute(output_folder(config.run_directory()))
    _holds_run(run, config)  # raises OutputError if it holds another, before the digits are loaded
    _require_work_for_all(config)
    console.progress("loading the digits")
    try:
        splits = load(config.data, console.line)
        metrics = finished(run, config, splits)
    except DataError:  # a finished run needs no digits
        if (metrics := finished(run, config)) is None:
            raise
    if metrics is not None:
        console.line(f"{run} is done: nothing to train", "done")
        if not storage.is_file(storage.join(run, "report.html")):
            console.warning("it has no report; delete its metrics.json, then the same command writes one")
        return metrics
    _warn_if_short(config, len(splits.train), console)
    if config.patience:
        hold_out(splits.train, splits.origin)  # raises DataError if too few digits, before anything is written
    owner = Owner(run)
    with _engine(run, config, splits, console) as run_workers, owning(owner):
        is_new = _begin(run, config, splits)
        try:
            ended = run_workers(owner)
        except OutputError:  # such as for the checkpoints of a run whose settings were lost
            if is_new:
                storage.delete(storage.join(run, "config.json"))
            raise
        owner.require()
        if not ended:
            owner.raise_if_stopped("run the same command again to continue from its newest checkpoint")
    if ended and (metrics := finished(run, config, splits)) is not None:
        return metrics
    raise StorageError(f"{run}: results written by workers are not visible on the driver; give an --out that all nodes share")


def _warn_if_short(config: TrainConfig, num_digits: int, console: Console) -> None:
    """Warn if the run has fewer than `FEW_STEPS` optimizer steps, and say which recipe or flag gives more."""
    recipe = config.settings()
    steps = math.ceil(recipe.epochs * num_digits / recipe.global_batch_size)
    if config.seconds or steps >= FEW_STEPS:
        return
    epochs = math.ceil(FEW_STEPS * recipe.global_batch_size / num_digits)
    longer = [name for name, other in RECIPES.items() if other.epochs >= epochs and not config.epochs]
    console.warning(
        f"{num_digits:,} training digits and {recipe.epochs:g} epochs give {steps:,} optimizer steps, and a useful network "
        f"takes at least {FEW_STEPS}: give {f'--recipe {longer[0]}, or ' if longer else ''}--epochs {epochs:,} or more"
    )


@contextmanager
def _engine(run: str, config: TrainConfig, splits: Splits, console: Console) -> Iterator[Callable[[Owner], bool]]:
    """What trains and returns whether the run ended: this process, or a Ray cluster that has room for the workers."""
    fewest, most = worker_range(config.workers)
    if most == 0:
        from mnist_ray.artifact.predictor import pick_device

        console.progress("loading the network")
        pick_device(config.device)  # raises UsageError if there is no such device, before anything is written
        yield lambda owner: work(run, config, config.device, splits, LocalControl(owner, console))
        return
    trainer = partial(import_ahead, "ray.train.v2.api.data_parallel_trainer")
    with runtime.cluster(config.address, console, trainer) as owns_cluster:
        needs = capacity.needs(fewest, config.device, capacity.capacity(), elastic=fewest < most)
        capacity.wait_for_room(fewest, needs, console)
        yield lambda owner: fit(config, splits, needs, owner, console, owns_cluster=owns_cluster)


def _require_work_for_all(config: TrainConfig) -> None:
    """Raise UsageError if the global batch has fewer groups of samples than there can be workers."""
    size, (_, most) = config.settings().global_batch_size, worker_range(config.workers)
    if most > (groups := num_groups(size)):
        raise UsageError(
            f"--workers {config.workers} --global-batch-size {size}: a batch is divided into groups of {GROUP_SIZE}, so it has "
            f"work for {groups}; ask for at most {groups} workers, or give at least --global-batch-size {most * GROUP_SIZE}"
        )


def _digests(splits: Splits) -> list[str]:
    return [splits.train.digest, splits.test.digest]


def _holds_run(run: str, config: TrainConfig, splits: Splits | None = None) -> bool:
    """Whether the directory holds the run of these settings and digits; False if it is new.

    Raises OutputError if it holds something else: a run with other settings or digits, damaged settings, or a prediction table.
    """
    try:
        existing = storage.read_json(storage.join(run, "config.json"))
        found, digests = dict(existing["meaning"]), existing["data_sha256"]
    except FileNotFoundError:
        held = {*storage.names(run)}
        for name, what in _OF_OTHERS.items():
            if name in held:
                raise OutputError(f"{run}: holds {what}; give another --out") from None
        if "checkpoints" not in held and (others := sorted(held & _RESULTS)):
            raise OutputError(f"{run}: holds {', '.join(others)}, and no run; give another --out") from None
        return False
    except (ValueError, KeyError, TypeError):
        raise OutputError(
            f"{run}/config.json: is damaged; give another --out, or delete this file to continue from the checkpoints"
        ) from None
    wanted = config.identity()
    if different := sorted(name for name in wanted if found.get(name) != wanted[name]):
        changes = ", ".join(f"{name} {found.get(name)} -> {wanted[name]}" for name in different)
        raise OutputError(f"{run}: holds a run with other settings ({changes}); give another --out, or delete the folder")
    if splits and digests != _digests(splits):
        raise OutputError(f"{run}: was trained on other digits than {splits.origin} holds now; give another --out")
    return True


def finished(run: str, config: TrainConfig, splits: Splits | None = None) -> dict[str, Any] | None:
    """The metrics of a finished run; None if it is not finished, or its model is damaged.

    Raises OutputError if the folder holds something else, such as a run on other digits than `splits`.
    """
    if not _holds_run(run, config, splits):
        return None
    try:
        metrics: dict[str, Any] = storage.read_json(storage.join(run, "metrics.json"))
        _, digest = seal.read(storage.join(run, "model"))
        valid = (metrics["fingerprint"], metrics["model_digest"]) == (config.fingerprint(), digest)
    except (FileNotFoundError, ValueError, KeyError, TypeError, ModelError):
        return None
    return metrics if valid else None


def _begin(run: str, config: TrainConfig, splits: Splits) -> bool:
    """Write the run's settings; returns whether it had none. Raises OutputError if the directory holds something else."""
    is_new = not _holds_run(run, config, splits)  # again, because another job may have begun one in the meantime
    origin = {"data_name": splits.name, "data_sha256": _digests(splits)}
    storage.write_json(storage.join(run, "config.json"), {"flags": asdict(config), "meaning": config.identity(), **origin})
    return is_new
