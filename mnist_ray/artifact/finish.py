"""What a finished run leaves in its directory: the bundle and the metrics."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

import mnist_ray
from mnist_ray.artifact.bundle import make_bundle
from mnist_ray.artifact.evaluate import evaluate, wilson_interval
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import Splits
from mnist_ray.learn.state import TrainState

SELF_TEST_SAMPLES = 20


def _versions() -> dict[str, str]:
    return {"mnist_ray": mnist_ray.__version__, "torch": torch.__version__, "python": platform.python_version()}


def finish(run: str, config: TrainConfig, splits: Splits, state: TrainState, device: torch.device) -> dict[str, Any]:
    """Measure the trained model on the test part, write `model/` and then `metrics.json`, and return the metrics."""
    per_digit = [np.flatnonzero(splits.test.labels == digit)[: SELF_TEST_SAMPLES // 10] for digit in range(10)]
    examples = torch.from_numpy(splits.test.images[np.concatenate(per_digit)])
    card = {"data": splits.card, "training": config.meaning(), "samples_seen": state.samples_seen, "versions": _versions()}
    report = evaluate(splits.test, Predictor.ready(make_bundle(state.model, card, examples), device))
    accuracy = {
        "value": report.accuracy,
        "interval_95": list(wilson_interval(report.correct, report.count)),
        "num_images": report.count,
        "measured_on": f"the test part of {splits.name}",
    }
    digest = make_bundle(state.model, {"accuracy": accuracy, **card}, examples).save(storage.join(run, "model"))
    metrics = {
        **report.to_json(),
        "data": splits.name,
        "train_seconds": round(state.train_seconds, 3),
        "samples_seen": state.samples_seen,
        "samples_per_second": round(state.samples_seen / max(state.train_seconds, 1e-9), 1),
        "epochs": config.epochs,
        "workers": config.workers,
        "device": str(device),
        "model_digest": digest,
        "fingerprint": config.fingerprint(),
    }
    storage.write_json(storage.join(run, "metrics.json"), metrics)
    return metrics
