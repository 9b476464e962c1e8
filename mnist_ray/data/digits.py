"""Labelled digits in memory, the split into training and test images, and the predictions of a model."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import DataError

CLASSES = tuple("0123456789")
"""The names of the classes; the label of a class is its position. At most 128 (docs/how-to/own-classes.md)."""
UNLIKE = 0.01
"""Inputs with a smaller likeness do not look like a digit. This share of real digits does not, either."""
HOLD_OUT = 0.1
"""Share of the images of each class that is held out for testing if a dataset has no test part."""


@dataclass(frozen=True)
class LabelledDigits:
    """Digits and their labels: `images` uint8[N, 28, 28], `labels` uint8[N], positions in `CLASSES`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of images and labels, as 64 hexadecimal characters."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The digits at the positions `rows`, in that order."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class Splits:
    """A dataset: its name, its origin, its licence terms, and its training and test digits."""

    name: str
    origin: str
    terms: str
    train: LabelledDigits
    test: LabelledDigits

    @property
    def card(self) -> dict[str, object]:
        """The description of the dataset that artifacts store."""
        return {
            "name": self.name,
            "origin": self.origin,
            "terms": self.terms,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "train_sha256": self.train.digest,
            "test_sha256": self.test.digest,
        }


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for N digits, C classes: `labels` uint8[N], their `confidence` float32[N], `probabilities` float32[N, C].

    `likeness` float32[N] is the share of held-out digits that look less like a digit than the input, to the model.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    likeness: NDArray[np.float32]


Predict = Callable[[NDArray[np.uint8]], Predictions]
"""A model as a function of digits, uint8[N, 28, 28]."""


def checked(images: NDArray[np.uint8], labels: NDArray[np.integer], source: str) -> LabelledDigits:
    """Digits with checked labels. Raises DataError that names the source for a label of no class, or if there are no images."""
    if not len(labels):
        raise DataError(f"{source}: holds no images")
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))):
        raise DataError(f"{source}: label {labels[wrong[0]]} of image {wrong[0]}; expected 0 to {len(CLASSES) - 1}")
    return LabelledDigits(images, labels.astype(np.uint8))


def hold_out(digits: LabelledDigits, source: str) -> tuple[LabelledDigits, LabelledDigits]:
    """Split digits into a training and a test part.

    A tenth of each class, but at least one image, is drawn at random for the test part. Each call draws the same images.
    Raises DataError if a class has only one image.
    """
    random = np.random.default_rng(0)
    is_test = np.zeros(len(digits), bool)
    for label, name in enumerate(CLASSES):
        rows = random.permutation(np.flatnonzero(digits.labels == label))
        if len(rows) == 1:
            raise DataError(f"{source}: has one image of class {name} to train on; expected at least two, to hold one out")
        is_test[rows[: max(1, round(len(rows) * HOLD_OUT))]] = True
    return digits.take(np.flatnonzero(~is_test)), digits.take(np.flatnonzero(is_test))
