"""Labelled digits in memory, and the splits made of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import DataError

CLASSES = tuple(str(digit) for digit in range(10))
HOLD_OUT = 0.1
"""Share of the images of each class that becomes the test part where a dataset has none."""


@dataclass(frozen=True)
class LabelledDigits:
    """Digits and their labels: `images` uint8[N, 28, 28], `labels` uint8[N] from 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of images and labels, as hexadecimal characters."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    def take(self, rows: NDArray[np.int64]) -> LabelledDigits:
        """The digits at these positions."""
        return LabelledDigits(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Splits:
    """A dataset: what it is called, where it came from and under what terms, and its two parts."""

    name: str
    origin: str
    terms: str
    train: LabelledDigits
    test: LabelledDigits

    @property
    def card(self) -> dict[str, object]:
        """What artifacts say about the data they came from."""
        return {
            "name": self.name,
            "origin": self.origin,
            "terms": self.terms,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "train_sha256": self.train.digest,
            "test_sha256": self.test.digest,
        }


def checked(images: NDArray[np.uint8], labels: NDArray[np.integer], source: str) -> LabelledDigits:
    """Digits whose labels are all from 0 to 9. Raises DataError naming the source."""
    if not len(labels):
        raise DataError(f"{source}: holds no images")
    if len(wrong := np.flatnonzero((labels < 0) | (labels > 9))):
        raise DataError(f"{source}: label {labels[wrong[0]]} of image {wrong[0]}; expected 0 to 9")
    return LabelledDigits(images, labels.astype(np.uint8))


def require_every_class(digits: LabelledDigits, source: str) -> None:
    """Raise DataError if a class has no training image."""
    if missing := sorted(set(range(10)) - set(digits.labels.tolist())):
        raise DataError(f"{source}: has no training image of class {', '.join(map(str, missing))}; expected all ten digits")


def hold_out(digits: LabelledDigits, source: str, seed: int = 0) -> tuple[LabelledDigits, LabelledDigits]:
    """A seeded stratified split: a tenth of each class, at least one image, becomes the test part."""
    random = np.random.default_rng(seed)
    held: list[int] = []
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(digits.labels == digit))
        if len(rows) == 1:
            raise DataError(f"{source}: has one image of class {digit}; expected two or more, to hold some out for testing")
        held.extend(rows[: max(1, round(len(rows) * HOLD_OUT)) if len(rows) else 0])
    test = np.isin(np.arange(len(digits)), held)
    return digits.take(np.flatnonzero(~test)), digits.take(np.flatnonzero(test))
