"""Makes a stroke as wide as those of MNIST: the fourth part of the rule in `paper.py`.

The depth of the digit becomes ink from 0 to 255. A stroke much thinner or thicker than those of MNIST is widened or thinned.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.light import Field

SIDE = 100
"""Pixels of the longer side of a digit when the width of its stroke is measured."""
THIN, THICK = 0.09, 0.19
"""Usual widths of strokes in MNIST, as a share of the digit's longer side."""


def ink_of(depth: Field, mask: NDArray[np.bool_], low: float) -> Field:
    """The ink of a digit from 0 to 255: full where most of it is, and none where it is hardly deeper than the paper."""
    full = float(np.percentile(depth[mask], 80))
    floor = max(0.5 * low, 0.2 * full)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    ink = np.clip((depth - floor) / (0.8 * full - floor), 0, 1) * near
    return np.asarray(ink * 255, np.float32)


def with_usual_width(ink: Field) -> Field:
    """Ink cut to its box, with a stroke that is as wide as in MNIST."""
    scale = SIDE / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    large = np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.float32)
    width = _width(large)
    change = round((min(max(width, THIN), THICK) - width) * SIDE)
    if change == 0 or width == 0:
        return ink
    margin = abs(change) + 2
    large = np.asarray(cv2.copyMakeBorder(large, margin, margin, margin, margin, cv2.BORDER_CONSTANT), np.float32)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (abs(change) + 1, abs(change) + 1))
    if change < 0:
        thinner = np.asarray(cv2.erode(large, element), np.float32)
        return thinner if (thinner > 127).any() else ink
    full = float(np.percentile(large[large > 64], 50))  # reduced in size, a hairline is grey
    return np.asarray(cv2.dilate(np.minimum(large * (255 / full), 255), element), np.float32)


def _width(ink: Field) -> float:
    """The mean width of the strokes, as a share of the longer side."""
    mask = (ink > 127).astype(np.uint8)
    distance = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
    inside = distance[distance > 0]
    return 4 * (float(inside.mean()) - 0.5) / max(ink.shape) if inside.size else 0.0
