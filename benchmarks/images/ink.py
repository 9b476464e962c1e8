"""Handwriting as ink: an MNIST digit at any size, drawn again with a pen of any width."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

FINE = 8
"""Pixels for each pixel of MNIST while the outline is computed."""
BOX = 20
"""MNIST fits a digit into a box of this side."""


@dataclass(frozen=True)
class Pen:
    """How a pen draws. Widths are in pixels of MNIST, whose digits are 20 high and whose strokes are about 2.5 wide."""

    width: float = 0.0
    """Width of the stroke; 0 keeps the stroke of the MNIST digit."""
    wider: float = 0.0
    """Added to the stroke on each side."""
    opacity: float = 1.0
    grain: float = 0.0
    """Share of the ink that the paper's grain leaves out, as of pencil and chalk."""
    colour: tuple[float, float, float] = (0.13, 0.1, 0.1)
    """Blue, green, red, from 0 to 1."""


def draw(digit: NDArray[np.uint8], height: float, pen: Pen, random: np.random.Generator) -> Field:
    """The coverage of the page with ink, from 0 to 1. The digit's box has this height in pixels."""
    scale = height / BOX
    large = cv2.resize(digit.astype(np.float32), None, fx=FINE, fy=FINE, interpolation=cv2.INTER_CUBIC)
    solid = cv2.GaussianBlur(large, (0, 0), FINE * 0.45) > 110
    if pen.width:
        distance = _distance(~_skeleton(solid)) / FINE
        inside = pen.width / 2 - cv2.GaussianBlur(distance, (0, 0), FINE * 0.12)
    else:
        inside = cv2.GaussianBlur((_distance(solid) - _distance(~solid)) / FINE, (0, 0), FINE * 0.3) + pen.wider
    side = max(3, round(digit.shape[0] * scale))
    reduce = side < inside.shape[0]
    if reduce:
        coverage = cv2.resize(np.clip(inside * FINE + 0.5, 0, 1), (side, side), interpolation=cv2.INTER_AREA)
    else:
        coverage = np.clip(cv2.resize(inside, (side, side), interpolation=cv2.INTER_CUBIC) * scale + 0.5, 0, 1)
    if pen.grain:
        coverage = coverage * _grain(coverage.shape, pen.grain, scale, random)
    return np.asarray(coverage * pen.opacity, np.float32)


def _grain(shape: tuple[int, ...], share: float, scale: float, random: np.random.Generator) -> Field:
    noise = np.asarray(
        cv2.GaussianBlur(random.normal(0, 1, shape).astype(np.float32), (0, 0), max(0.6, scale * 0.12)), np.float32
    )
    noise = noise / max(float(noise.std()), 1e-6)
    return np.asarray(1 - share * np.clip(noise + 0.6, 0, 1.6) / 1.6, np.float32)


def _distance(mask: Mask) -> Field:
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def _skeleton(mask: Mask) -> Mask:
    """The middle line of strokes: thinning after Zhang and Suen (1984)."""
    image = mask.copy()
    image[[0, -1]] = image[:, [0, -1]] = False
    while True:
        before = image.sum()
        for first in (True, False):
            p = [
                np.roll(image, shift, (0, 1))
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            count = np.sum(p, axis=0)
            changes = np.sum([~p[i] & p[(i + 1) % 8] for i in range(8)], axis=0)
            north, east, south, west = p[0], p[2], p[4], p[6]
            open_sides = (
                ~(north & east & south) & ~(east & south & west) if first else ~(north & east & west) & ~(north & south & west)
            )
            image = image & ~((count >= 2) & (count <= 6) & (changes == 1) & open_sides)
        if image.sum() == before:
            return image
