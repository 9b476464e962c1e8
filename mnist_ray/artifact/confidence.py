"""What a model's answers are worth, measured on held-out digits (docs/decisions/0026).

A temperature makes the probabilities honest, a likeness says how much an input looks like a digit, and the list of mistakes
gives the confidence above which few answers are wrong.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mnist_ray.data.digits import Predictions
from mnist_ray.data.measures import calibration, mistakes
from mnist_ray.learn.model import seeded

BASIS_SIZE = 32
"""Directions of `basis`."""
TEMPERATURES = np.geomspace(1e-3, 1e3, 1 << 20)
"""The temperatures among which the best one is chosen."""
SHARES = (0.0, 0.001, 0.002, 0.005, *np.linspace(0.01, 0.1, 10).tolist(), *np.linspace(0.2, 1, 9).tolist())
"""Shares of the held-out digits whose largest score a bundle keeps. They are closest near 0, where unusual digits are."""


def basis(features: Tensor) -> Tensor:
    """The directions float[F, `BASIS_SIZE`] that hold most of the features float[N, F] of digits: their singular vectors."""
    with seeded(0):  # the algorithm starts with random directions
        directions: Tensor = torch.svd_lowrank(features, min(BASIS_SIZE + 8, *features.shape), niter=4)[2]
    return directions[:, :BASIS_SIZE].contiguous()


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that gives labels int64[N] the highest likelihood: temperature scaling (C. Guo et al., ICML 2017).

    The targets are smoothed by one image, because a network without mistakes would get the temperature 0 (J. Platt, 1999).
    """
    smoothing = logits.shape[1] / (logits.shape[1] - 1) / (len(labels) + 2)
    logits = logits.double()
    targets = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]

    def slope(t: float) -> float:
        """The derivative of the log-likelihood by 1 / t. It falls with 1 / t, so there is one maximum, where it is 0.

        It is always negative for a network that is no better than chance, which gets the highest temperature.
        """
        return float(((targets - torch.softmax(logits / t, 1)) * logits).sum())

    return float(TEMPERATURES[bisect_left(TEMPERATURES, 0.0, hi=len(TEMPERATURES) - 1, key=slope)])


@dataclass(frozen=True)
class Confidence:
    """Turns the logits and features of a model into probabilities and likenesses."""

    temperature: float
    """The logits are divided by it."""
    spreads: tuple[float, float]
    """What the two parts of the score are divided by, so that they count the same."""
    scores: tuple[float, ...]
    """The largest score of each of the `SHARES` of the held-out digits."""

    @classmethod
    def measured(cls, logits: Tensor, inside: Tensor, labels: NDArray[np.uint8]) -> Self:
        """Measured on held-out digits: their logits float32[N, C], the share of their features in the basis, their labels."""
        parts = _parts(logits, inside)
        spreads = tuple(max(float(np.median(part) - np.quantile(part, 0.1)), 1e-6) for part in parts)
        scores = np.quantile(sum(part / spread for part, spread in zip(parts, spreads, strict=True)), SHARES)
        return cls(
            temperature(logits, torch.from_numpy(labels.astype(np.int64))), (spreads[0], spreads[1]), tuple(scores.tolist())
        )

    @classmethod
    def read(cls, card: Mapping[str, Any]) -> Self:
        """What the card of a bundle holds. Until it was measured, probabilities are those of the network."""
        held = card.get("confidence", {})
        spreads, scores = held.get("spreads", (1.0, 1.0)), held.get("scores", [-math.inf] * len(SHARES))
        return cls(held.get("temperature", 1.0), tuple(spreads), tuple(scores))

    def predictions(self, logits: Tensor, inside: Tensor) -> Predictions:
        """Predictions for logits float32[N, C] and shares float32[N] of the squared features that lie in the basis."""
        probabilities = torch.softmax(logits / self.temperature, 1)
        confidence, label = probabilities.max(dim=1)
        score = sum(part / spread for part, spread in zip(_parts(logits, inside), self.spreads, strict=True))
        likeness = np.interp(score, self.scores, SHARES).astype(np.float32)
        return Predictions(label.numpy().astype(np.uint8), confidence.numpy(), probabilities.numpy(), likeness)

    def card(self, logits: Tensor, inside: Tensor, labels: NDArray[np.uint8]) -> dict[str, Any]:
        """The part of a bundle's card that describes the confidence, for the digits on which it was measured."""
        found = self.predictions(logits, inside)
        right = found.labels == labels
        plain = torch.softmax(logits, 1).numpy().max(axis=1)
        return {
            **asdict(self),
            "num_images": len(labels),
            "expected_calibration_error": {
                "before": calibration(plain, right)["expected_error"],
                "after": calibration(_crossed(logits, labels), right)["expected_error"],
            },
            "mistakes": mistakes(found.confidence, right),
        }


def _parts(logits: Tensor, inside: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two parts of the score: the largest logit, and the logarithm of the share of the features in the basis.

    Both are low for inputs that are no digits. H. Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022,
    add logits and the features outside of a principal space in a similar way.
    """
    return logits.amax(1).numpy(), inside.clamp_min(1e-9).log().numpy()


def _crossed(logits: Tensor, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Confidences float32[N] with a temperature from the other half of the images, so that none is measured on itself."""
    truths = torch.from_numpy(labels.astype(np.int64))
    found = np.empty(len(labels), np.float32)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - (half.start or 0), None, 2)
        t = temperature(logits[other], truths[other]) if len(labels) > 1 else 1.0
        found[half] = torch.softmax(logits[half] / t, 1).numpy().max(axis=1)
    return found
