"""The results that a finished run writes: the bundle and the metrics."""

import platform
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import mnist_ray
from mnist_ray.artifact.bundle import make_bundle
from mnist_ray.artifact.confidence import Confidence
from mnist_ray.artifact.evaluate import EvalReport, compare
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES, Predictions, Splits
from mnist_ray.data.statistics import wilson_interval
from mnist_ray.data.traits import count_traits
from mnist_ray.learn import dist
from mnist_ray.learn.model import CALIBRATION_SAMPLES, DigitCNN
from mnist_ray.learn.state import TrainState

SELF_TEST_PER_CLASS = 2
"""Test digits of each class in a bundle's self-test."""


def finish(
    run: str, config: TrainConfig, splits: Splits, state: TrainState, device: torch.device
) -> tuple[dict[str, Any], Predictions]:
    """Evaluate the trained network on the test digits, write `model/` and then `metrics.json`. Raises StorageError.

    Returns the content of `metrics.json`, and the predictions of `model/` for the test digits. `state.model` is then that
    network. With `--patience`, `model/` holds the epoch with the highest validation accuracy, and `model-last/` the last epoch.
    """
    card = {
        "data": splits.card,
        "training": config.identity(),
        "samples_seen": state.samples_seen,
        "precision": state.precision,
        "versions": {"mnist_ray": mnist_ray.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    model = state.model
    if state.best:
        _write_bundle(storage.join(run, "model-last"), model, card, splits, device)
        model.load_state_dict(state.best)
    report, predictions, about, digest = _write_bundle(storage.join(run, "model"), model, card, splits, device)
    metrics = {
        **report.to_json(),
        "temperature": about["temperature"],
        "expected_calibration_error": about["expected_calibration_error"],
        "data": splits.name,
        "train_seconds": round(state.train_seconds, 3),
        "samples_seen": state.samples_seen,
        "samples_per_second": round(state.samples_seen / max(state.train_seconds, 1e-9), 1),
        "epochs": state.history[-1]["epoch"],
        "workers": dist.world(),
        "device": str(device),
        "precision": state.precision,
        "model_digest": digest,
        "fingerprint": config.fingerprint(),
    }
    storage.write_json(storage.join(run, "metrics.json"), metrics)
    return metrics, predictions


def _write_bundle(
    place: str, model: DigitCNN, card: dict[str, Any], splits: Splits, device: torch.device
) -> tuple[EvalReport, Predictions, dict[str, Any], str]:
    """Evaluate a network and write its bundle; returns the report, the predictions, the confidence and the bundle's digest."""
    per_class = [np.flatnonzero(splits.test.labels == label)[:SELF_TEST_PER_CLASS] for label in range(len(CLASSES))]
    examples = torch.from_numpy(splits.test.images[np.concatenate(per_class)])
    learned = torch.tensor(splits.train.images[:: max(1, len(splits.train) // CALIBRATION_SAMPLES)])
    bundle = make_bundle(model, card, examples, learned)
    outputs = Predictor.ready(bundle, device).outputs(torch.tensor(splits.test.images))
    confidence = Confidence.measured(*outputs, splits.test.labels)
    predictions = confidence.predictions(*outputs)
    report = compare(splits.test, predictions)
    accuracy = {
        "value": report.accuracy,
        "interval_95": list(wilson_interval(report.correct, report.count)),
        "num_images": report.count,
        "measured_on": f"the test part of {splits.name}",
    }
    reference = {
        "digits": report.confusion.sum(axis=0).tolist(),
        "confidences": report.confidences,
        "traits": count_traits(learned.numpy()),
    }
    about = {"measured_on": accuracy["measured_on"], **confidence.card(*outputs, splits.test.labels)}
    measured = {
        "accuracy": accuracy,
        "confidence": about,
        "reference": reference,
    }
    return report, predictions, about, replace(bundle, card={**bundle.card, **measured}).save(place)
