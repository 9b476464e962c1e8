"""The evaluation of a predictor on labelled digits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.digits import CLASSES, LabelledDigits, Predict, Predictions
from mnist_ray.data.statistics import confidence_counts, wilson_interval
from mnist_ray.learn.metrics import Counted


@dataclass(frozen=True)
class EvalReport(Counted):
    """Predictions against the truth: `confusion` int64[C, C] (rows: truth, columns: prediction), `loss` in nats per image."""

    confusion: NDArray[np.int64]
    loss: float
    confidences: list[int]
    """Images in each bin of `CONFIDENCE_EDGES`."""

    def per_class(self) -> list[dict[str, float]]:
        """Label, number of images, precision and recall of each class; a ratio without data is 0."""
        hits, images = self.confusion.diagonal(), self.confusion.sum(axis=1)
        precision = (hits / np.maximum(self.confusion.sum(axis=0), 1)).tolist()
        recall = (hits / np.maximum(images, 1)).tolist()
        return [
            {"class": i, "images": int(images[i]), "precision": precision[i], "recall": recall[i]} for i in range(len(CLASSES))
        ]

    def to_json(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return {
            "accuracy": self.accuracy,
            "interval_95": list(wilson_interval(self.correct, self.count)),
            "num_images": self.count,
            "loss": self.loss,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
        }

    def headline(self) -> str:
        """The accuracy and the loss, as two lines of text."""
        low, high = wilson_interval(self.correct, self.count)
        return (
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}) on {self.count:,} images\n"
            f"loss {self.loss:.4f}"
        )

    def to_text(self) -> str:
        """The report as text."""
        width = max(map(len, ("digit", *CLASSES)))
        names = " ".join(f"{name:>{width}}" for name in CLASSES).lstrip()
        lines = [self.headline(), "", f"{'digit':>{width}}  images  precision  recall   predicted as {names}"]
        margin = " " * (16 + len(CLASSES[0]) - width)  # the counts are below the names
        for name, row, counts in zip(CLASSES, self.per_class(), self.confusion, strict=True):
            figures = f"{name:>{width}} {row['images']:7d} {row['precision']:10.2%} {row['recall']:7.2%}"
            lines.append(figures + margin + " ".join(f"{count:{width}d}" for count in counts))
        return "\n".join(lines)


def evaluate(digits: LabelledDigits, predict: Predict) -> EvalReport:
    """Compare a predictor's answers with the labels."""
    return compare(digits, predict(digits.images))


def compare(digits: LabelledDigits, predictions: Predictions) -> EvalReport:
    """Compare the predictions for these digits with their labels."""
    labels = digits.labels.astype(np.int64)
    count = len(CLASSES)
    confusion = np.bincount(labels * count + predictions.labels, minlength=count**2).reshape(count, count)
    true_probability = predictions.probabilities[np.arange(len(labels)), labels]
    loss = float(-np.log(np.maximum(true_probability, 1e-12)).mean())
    return EvalReport(confusion, loss, confidence_counts(predictions.confidence))
