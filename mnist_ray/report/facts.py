"""The facts of a training run that its report shows: the content of `report.json`."""

import importlib.metadata
import os
import platform
import shlex
import time
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES, LabelledDigits, Predictions, Splits
from mnist_ray.data.measures import calibration, selection
from mnist_ray.report.page import picture

if TYPE_CHECKING:
    from mnist_ray.learn.state import TrainState

FORMAT = 1
POOR = 0.88
"""Accuracy of a linear classifier of the pixels of MNIST (Y. LeCun et al., 1998). A network with less is called poor."""
STILL_FALLS = 0.1
"""If the last test loss is below the lowest one before by more than this share, training may have been too short."""
RIGHT_PER_CLASS = 2
MOST_CONFIDENT = 12
"""Mistakes in the list of the most confident ones."""
WRONG_PER_CELL = 8
"""Mistakes of each cell of the confusion matrix that are shown, besides the most confident ones of all cells."""
DOUBTFUL = 0.99
"""If a network gives another digit with more confidence than this, the label may be wrong. This is a guess."""
MISLABELLED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
"""Positions of the test images of MNIST whose label was confirmed by fewer than three of five people.

Source: C. G. Northcutt, A. Athalye and J. Mueller, Pervasive Label Errors in Test Sets Destabilize Machine Learning Benchmarks,
NeurIPS 2021; their answers are in https://github.com/cleanlab/label-errors, file `mturk/mnist_mturk.json`.
"""


def collect(
    run: str, config: TrainConfig, splits: Splits, state: "TrainState", metrics: dict[str, Any], predictions: Predictions
) -> dict[str, Any]:
    """The facts of a finished run, as values that JSON can hold.

    `metrics` is the content of `metrics.json`, `predictions` are those for all test digits, and `state` holds the network that
    made them. Must be called on the machine that trained, because the facts describe it.
    """
    right = predictions.labels == splits.test.labels
    history = _with_speed(state.history)
    return {
        "format": FORMAT,
        "run": storage.to_text(run),
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "metrics": metrics,
        "verdict": _verdict(config, metrics, history),
        "num_mistakes": int((~right).sum()),
        "num_parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "history": history,
        "schedule": _schedule(config, state),
        "calibration": calibration(predictions.confidence, right),
        "selection": selection(predictions.confidence, right),
        **_examples(splits, predictions),
        "filters": _filters(state),
        "settings": config.identity(),
        "data": splits.card,
        "machine": _machine(metrics["device"]),
        "versions": _versions(),
        "command": _command(run, config, splits),
    }


def _with_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history, with the training samples per second of each row."""
    before = [0.0, *(row["train_seconds"] for row in history)]
    return [
        {**row, "samples_per_second": row["train_samples"] / max(row["train_seconds"] - start, 1e-9)}
        for row, start in zip(history, before, strict=False)
    ]


def _verdict(config: TrainConfig, metrics: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    """What the page says about the run.

    `chance` is the accuracy of always giving the most frequent digit of the test images. `level` is chance, poor or good.
    `fall` is the share by which the last test loss is below the lowest one before; None if there was only one measurement.
    `too_short` says that a longer training would probably help: the loss still falls, or a single measurement is poor.
    `best_epoch` is the epoch whose network was kept; None without `--patience`.
    """
    images = [row["images"] for row in metrics["per_class"]]
    chance = max(images) / sum(images)
    level = "chance" if metrics["interval_95"][0] <= chance else "poor" if metrics["accuracy"] < POOR else "good"
    *before, last = (row["test_loss"] for row in history)
    fall = 1 - last / max(min(before), 1e-9) if before else None
    best = max(history, key=lambda row: row["validation_accuracy"])["epoch"] if config.patience else None
    too_short = level != "good" if fall is None else fall > STILL_FALLS and not config.patience
    return {"level": level, "chance": chance, "poor_below": POOR, "fall": fall, "too_short": too_short, "best_epoch": best}


def _schedule(config: TrainConfig, state: "TrainState") -> list[dict[str, float]]:
    """The learning rate over the samples: the corners of its triangle, or with `--seconds` the rates at the ends of epochs."""
    recipe = config.settings()
    if config.seconds:
        return [{"samples_seen": row["samples_seen"], "lr": row["lr"]} for row in state.history]
    corners = [0.0, recipe.warm_up * state.total, float(state.total)]
    points = [x for x in corners if x < state.samples_seen] + [float(state.samples_seen)]
    return [{"samples_seen": x, "lr": float(np.interp(x, corners, [0.0, recipe.lr, 0.0]))} for x in points]


def _examples(splits: Splits, predictions: Predictions) -> dict[str, Any]:
    """Pictures of test digits: the first ones of each class that are read correctly, and mistakes, the most confident first.

    The label of a mistake is in doubt as `MISLABELLED` says, or for other digits, if its confidence is above `DOUBTFUL`.
    """
    labels, answers = splits.test.labels, predictions.labels
    official = splits.name == "mnist"
    hits = [np.flatnonzero((labels == label) & (answers == label)) for label in range(len(CLASSES))]
    right = [i for rows in hits for i in rows[:RIGHT_PER_CLASS]]
    wrong = np.flatnonzero(answers != labels)
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]
    in_doubt = np.isin(wrong, MISLABELLED) if official else predictions.confidence[wrong] > DOUBTFUL
    shown: Counter[tuple[int, int]] = Counter()
    mistakes: list[dict[str, Any]] = []
    for i, doubted in zip(wrong, in_doubt, strict=True):
        cell = (int(labels[i]), int(answers[i]))
        shown[cell] += 1
        if len(mistakes) < MOST_CONFIDENT or shown[cell] <= WRONG_PER_CELL:
            mistakes.append({**_example(i, splits.test, predictions), "label_in_doubt": bool(doubted)})
    return {
        "right": [_example(i, splits.test, predictions) for i in right],
        "mistakes": mistakes,
        "doubt": {"source": "people" if official else "confidence", "above": DOUBTFUL, "mistakes": int(in_doubt.sum())},
    }


def _example(i: Any, digits: LabelledDigits, predictions: Predictions) -> dict[str, Any]:
    return {
        "position": int(i),
        "truth": int(digits.labels[i]),
        "label": int(predictions.labels[i]),
        "confidence": float(predictions.confidence[i]),
        "picture": picture(digits.images[i]),
    }


def _filters(state: "TrainState") -> list[str]:
    """The filters of the first layer as pictures. Mid-grey is weight 0, white the largest absolute weight of all filters."""
    weights = next(state.model.parameters()).detach().float().cpu().numpy()[:, 0]
    levels = np.round(127.5 + 127.5 * weights / max(float(np.abs(weights).max()), 1e-9)).astype(np.uint8)
    return [picture(np.ascontiguousarray(level)) for level in levels]


def _machine(device: str) -> dict[str, Any]:
    import torch

    return {
        "system": platform.platform(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else "",
    }


def _versions() -> dict[str, str]:
    import torch

    import mnist_ray

    known = {"mnist_ray": mnist_ray.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**known, **{name: importlib.metadata.version(name) for name in ("ray", "numpy")}}


def _command(run: str, config: TrainConfig, splits: Splits) -> str:
    """The command that repeats the run in another directory."""
    given = {field.name: value for field in fields(config) if (value := getattr(config, field.name)) != field.default}
    given = {name: value for name, value in given.items() if name not in ("log_format", "quiet")}
    if config.data == "auto":
        given["data"] = splits.name
    elif config.data not in ("mnist", "mnist5k"):
        given["data"] = storage.absolute(config.data)
    given["out"] = f"{run}-again"
    if config.augment is not None:
        given["augment"] = "on" if config.augment else "off"
    given = {name: f"{value:.15g}" if isinstance(value, float) else str(value) for name, value in given.items()}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    return storage.to_text(shlex.join(["mnist-ray", "train", *flags]))
