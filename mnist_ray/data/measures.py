"""What the confidences of a model are worth: its calibration, and how many mistakes its most confident answers have."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
CURVE_POINTS = 100
PROMISE = 0.95
"""Probability with which a threshold of `review_below` keeps the error that was asked for."""
WANTED = (0.99, 0.999, 0.9999)
"""Accuracies for which `selection` looks for a threshold."""


def calibration(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Compare the confidences float[N], 0 to 1, with the share of answers that are right, bool[N].

    `bins` has one row for each of `BINS` bins of equal width; `confidence` is the mean in this bin, and `accuracy` the share of
    right answers. Both are None if the bin holds no image. `expected_error` is the expected calibration error: the mean
    difference between the two, weighted by images (C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017).
    """
    rows: list[dict[str, Any]] = []
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    for i in range(BINS):
        inside = place == i
        row = {"low": i / BINS, "high": (i + 1) / BINS, "images": int(inside.sum()), "confidence": None, "accuracy": None}
        if inside.any():
            row |= {"confidence": float(confidence[inside].mean(dtype=np.float64)), "accuracy": float(right[inside].mean())}
        rows.append(row)
    gaps = [row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows if row["images"]]
    return {
        "expected_error": sum(gaps) / len(right),
        "mean_confidence": float(confidence.mean(dtype=np.float64)),
        "bins": rows,
    }


def mistakes(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> list[tuple[float, int]]:
    """Of each wrong answer, its confidence and the number of answers that are more confident; the most confident first."""
    wrong = np.sort(confidence[~right])[::-1]
    above = len(confidence) - np.searchsorted(np.sort(confidence), wrong, side="right")
    return [(float(value), int(number)) for value, number in zip(wrong, above, strict=True)]


def review_below(wrong: Sequence[tuple[float, int]], images: int, target: float) -> float | None:
    """The confidence up to which answers must be reviewed, so that at most a share `target` of the others is wrong.

    `wrong` are the `mistakes` among `images` held-out answers. If more than `target` of the answers above the threshold were
    wrong in truth, so few mistakes would be found in at most 5 % of cases (C. Clopper and E. Pearson, 1934). None if there are
    too few held-out answers to say so.
    """
    steps = [*wrong, (-1.0, images)]
    thresholds = [
        threshold
        for count, (threshold, above) in enumerate(steps)
        if count < target * above and _binomial_tail(count, above, target) <= 1 - PROMISE
    ]
    return thresholds[-1] if thresholds else None


def _binomial_tail(most: int, trials: int, share: float) -> float:
    """The probability of at most so many successes in trials that each succeed with probability `share`, from 0 to below 1."""
    log_odds = math.log(share) - math.log1p(-share)
    logs = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_odds for k in range(most + 1)]
    return sum(math.exp(value + trials * math.log1p(-share)) for value in logs)


def selection(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> dict[str, Any]:
    """The mistakes among the most confident answers: the risk-coverage curve (R. El-Yaniv and Y. Wiener, JMLR 2010).

    A row accepts all answers whose confidence is at least `threshold`: their number `images`, their `share` of all answers, the
    `mistakes` among them, and the `error`, which is mistakes / images. `curve` has at most `CURVE_POINTS` rows, from few
    images to all. `wanted` has a row for each accuracy in `WANTED`, the one that accepts the most images and is at least so
    accurate; it holds only `accuracy` if there is none.
    """
    order = np.argsort(-confidence, kind="stable")
    descending, mistakes = confidence[order], np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(descending[1:] < descending[:-1], True))  # equal confidences are accepted together
    images = ends + 1

    def row(i: int) -> dict[str, Any]:
        count, wrong = int(images[i]), int(mistakes[ends[i]])
        counts = {"images": count, "share": count / len(order), "mistakes": wrong, "error": wrong / count}
        return {"threshold": float(descending[ends[i]]), **counts}

    shares = np.linspace(0, len(order), CURVE_POINTS + 1)[1:]
    points = np.unique(np.searchsorted(images, shares))
    wanted: list[dict[str, Any]] = []
    for accuracy in WANTED:
        good = np.flatnonzero((images - mistakes[ends]) / images >= accuracy)
        wanted.append({"accuracy": accuracy, **(row(good[-1]) if len(good) else {})})
    return {"curve": [row(i) for i in points], "wanted": wanted}
