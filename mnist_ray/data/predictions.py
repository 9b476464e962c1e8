"""What a model says about digits, as plain arrays: the type between the model and the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of N digits: `label` uint8[N], `confidence` float32[N] (the label's probability), `probabilities` float32[N, 10]."""

    label: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]


Predict = Callable[[NDArray[np.uint8]], Predictions]
"""A model as a function of digits, uint8[N, 28, 28]."""
