"""Tells ink from paper by its level: the first part of the rule in `paper.py`.

- An image of two even levels is a drawing: the depth of its ink is the distance from the level of the paper.
- In other images the light varies. The background is the image without structures narrower than a stroke can be (a
  morphological closing). The edge of a shadow or of a table is a step, no stroke, so it stays in the background. The depth of
  the ink is how much darker than this background it is. Light ink on dark paper is inverted before.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Field = NDArray[np.float32]

WIDEST_STROKE, USUAL_STROKE = 0.2, 0.08
"""Widths of structures that count as ink, as shares of the image's shorter side."""
SIGMAS = 4.0
"""Ink is this many standard deviations of the background's noise away from it."""
QUANTILES = {56: 0.15, 62: 0.31, 70: 0.52}
"""Percentages of the normal distribution, and their standard deviations. Much ink raises the higher ones."""
FAINTEST = 0.035
"""Ink is at least this much darker than its background, as a share of it."""
UNEVEN = 0.2
"""Paper and ink of an image of two levels differ from their usual levels by no more than this share of the contrast."""
FULLEST = 0.7
"""Share of its box that the ink of an image of two levels fills at most. A shadow, and a sheet on a table, fill more."""
INK_AT_BORDER = 0.3
"""Share of the border that the ink of an image of two levels covers at most, also if the image is cut to it."""
CLEAR_SKEW = 0.75
"""Share of the third moment's absolute value."""


def shrink(grey: Grey, side: int) -> Grey:
    """The image, reduced so that its longer side has no more than this many pixels."""
    scale = side / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def ink_depth(grey: Grey) -> tuple[Field, float]:
    """The depth of the ink, from 0 to 1, and the depth above which a pixel may be ink."""
    two_levels = _two_levels(grey)
    if two_levels is not None:
        return two_levels, 0.25
    light_ink = _has_light_ink(grey)
    depth = _depth(255 - grey if light_ink else grey, light_ink)
    return depth, _noise_level(depth)


def _two_levels(grey: Grey) -> Field | None:
    """The depth in an image of two even levels, with paper on most of the border; None for other images."""
    mask = np.asarray(cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1], np.uint8)
    if _border(mask).mean() > 0.5:
        mask, grey = 1 - mask, 255 - grey
    if not mask.any() or _border(mask).mean() > INK_AT_BORDER:
        return None
    _, _, width, height = cv2.boundingRect(mask)
    if mask.sum() > FULLEST * width * height:
        return None
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    depth = grey - np.median(_border(grey)[_border(mask) == 0].astype(np.float32))
    depth *= 1 / float(depth.max())
    size = _odd(0.1 * min(grey.shape))
    paper, ink = depth[cv2.dilate(mask, np.ones((size, size), np.uint8)) == 0], depth[distance > 0.6 * distance.max()]
    even = paper.size and float(np.percentile(np.abs(paper), 98)) <= UNEVEN and float(np.median(ink)) >= 1 - UNEVEN
    return np.maximum(depth, 0) if even else None


def _border(image: Grey) -> Grey:
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def _has_light_ink(grey: Grey) -> bool:
    """Whether the ink is lighter than the paper.

    The sign of the levels' skewness around their local median says so, if the skewness is strong. Else three signs vote: it,
    the skewness in the middle of the image, and whether narrow light structures are stronger than narrow dark ones.
    """
    tiny = shrink(grey, 96)
    size = 2 * int(min(tiny.shape) * 0.18) + 1
    local = _unpad(cv2.medianBlur(_pad(tiny, size), size), size)
    cubes = (tiny.astype(np.float32) - local) ** 3
    if abs(cubes.sum()) > CLEAR_SKEW * np.abs(cubes).sum():
        return bool(cubes.sum() > 0)
    height, width = tiny.shape
    middle = cubes[height // 5 : height - height // 5, width // 5 : width - width // 5]
    half = np.asarray(cv2.GaussianBlur(shrink(grey, 200), (0, 0), 1.0), np.uint8)
    size = _odd(min(half.shape) * USUAL_STROKE)
    light, dark = (_narrow(half, kind, size) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
    return bool((cubes.sum() > 0) + (middle.sum() > 0) + (light > dark) >= 2)


def _narrow(image: Grey, kind: int, size: int) -> float:
    """The strength of the light or dark structures that are narrower than `size` pixels."""
    found = _unpad(cv2.morphologyEx(_pad(image, size), kind, np.ones((size, size), np.uint8)), size)
    return float((found.astype(np.float64) ** 3).sum())


def _odd(size: float) -> int:
    return max(3, int(size)) | 1


def _pad(image: Grey, size: int) -> Grey:
    """The image, going on beyond its border."""
    return np.asarray(cv2.copyMakeBorder(image, size, size, size, size, cv2.BORDER_REPLICATE), np.uint8)


def _unpad(image: NDArray[Any], size: int) -> Grey:
    return np.asarray(image[size:-size, size:-size], np.uint8)


def _depth(dark: Grey, light_ink: bool) -> Field:
    """How much darker than the background each pixel is, as a share of it.

    The narrower the structures are that count as ink, the less of a shadow does. So they are narrow, unless this loses ink.
    """
    smooth = np.asarray(cv2.GaussianBlur(dark, (0, 0), 0.8), np.uint8) if min(dark.shape) > 100 else dark
    wide, narrow = (_below_background(smooth, light_ink, share) for share in (WIDEST_STROKE, USUAL_STROKE))
    full = 0.7 * float(np.percentile(wide[::2, ::2], 99.8))
    return narrow if narrow[narrow > full].sum() > 0.8 * wide[wide > full].sum() else wide


def _below_background(dark: Grey, light_ink: bool, share: float) -> Field:
    size = _odd(min(dark.shape) * share)
    closed = cv2.morphologyEx(_pad(dark, size), cv2.MORPH_CLOSE, np.ones((size, size), np.uint8))
    background = _unpad(closed, size).astype(np.float32)
    whole = 255.0 if light_ink else np.maximum(background, 0.3 * float(np.percentile(background[::4, ::4], 95)) + 1)
    depth = (background - dark) / whole
    return np.asarray(np.maximum(depth - np.median(depth[::3, ::3]), 0), np.float32)


def _noise_level(depth: Field) -> float:
    """The depth above which a pixel may be ink."""
    levels = np.percentile(depth[::3, ::3], list(QUANTILES))
    noise = min(float(level) / deviations for level, deviations in zip(levels, QUANTILES.values(), strict=True))
    return max(FAINTEST, SIGMAS * noise)
