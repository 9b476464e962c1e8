"""Removes printed lines and boxes: the second part of the rule in `paper.py`.

A printed line is straight, thin, and spans the page or a box. Its depth is subtracted, and the strokes that cross it are
repaired. Functions look for lines from left to right; for those from top to bottom, they get the page on its side.
"""

import cv2
import numpy as np

from mnist_ray.data.light import Field
from mnist_ray.data.pieces import Piece

LINES_FROM = 60
"""Pixels of the shorter side of an image from which on lines are told from strokes."""
THICKEST = 0.03
"""Of a line, as a share of the page's shorter side."""
STRAIGHT = 0.02
"""A line bends by no more than this share of its length, unless it crosses the whole page."""
STEEPEST = 0.2
"""Greatest slope of a line."""
SHORTEST, RUN = 0.6, 0.3
"""Of a line, and of its longest part without a gap, as a share of the page."""
POINTS = 2500
"""Pixels of ink that tell the slope of the lines."""


def without_lines(depth: Field, low: float) -> Field:
    """The depth without lines that cross the page; `low` is the depth above which a pixel may be ink."""
    if min(depth.shape) < LINES_FROM:
        return depth
    for _ in range(2):
        depth = np.ascontiguousarray(depth.T)
        depth = _subtracted(depth, _lines(depth, low))
    return depth


def without_box(depth: Field, low: float, piece: Piece) -> Field:
    """The depth without the box that the piece is joined to, or without the line that the digit stands on.

    A box has lines on three sides of the piece or more. A piece with a line below is much broader than a digit.
    """
    if piece.touches or min(piece.width, piece.height) < LINES_FROM:
        return depth
    cut = np.ascontiguousarray(depth[piece.box])
    across, down = _lines(cut, low), _lines(np.ascontiguousarray(cut.T), low)
    edge = max(3, round(0.15 * min(cut.shape)))
    sides = [side for lines in (across, down) if lines for side in (lines[0][:edge], lines[0][-edge:])]
    boxed = sum(bool((side > 0).any()) for side in sides) >= 3
    if not boxed and (not across or piece.width < 1.5 * piece.height):
        return depth
    rest = _subtracted(cut, across)
    if boxed:
        rest = _subtracted(rest.T, down).T
    if rest.sum() < 0.1 * piece.mass:
        return depth
    left = depth.copy()
    left[piece.box] = rest
    return left


def _subtracted(depth: Field, lines: tuple[Field, float] | None) -> Field:
    """The depth without the lines, and with the strokes repaired that cross them."""
    if lines is None:
        return depth
    level, thick = lines
    rest = np.maximum(depth - 1.2 * level, 0)
    size = round(thick) + 5
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    repaired = np.minimum(cv2.morphologyEx(rest, cv2.MORPH_CLOSE, element), depth)
    return np.asarray(np.where(level > 0, repaired, rest), np.float32)


def _lines(depth: Field, low: float) -> tuple[Field, float] | None:
    """The depth of the lines that cross the page from left to right, and their thickness; None if there are none."""
    if (slope := _slope(depth, low)) is None:
        return None
    height, width = depth.shape
    extra = int(abs(slope) * width) + 1
    shear = np.array([[1, 0, 0], [-slope, 1, extra if slope > 0 else 0]], np.float32)
    level = np.asarray(cv2.warpAffine(depth, shear, (width, height + extra)), np.float32)
    wider = cv2.blur(cv2.dilate(level, np.ones((3, 1), np.uint8)), (max(3, width // 40), 1))
    run = np.ones((1, max(3, int(width * RUN))), np.uint8)
    level = np.asarray(cv2.morphologyEx(wider, cv2.MORPH_OPEN, run, borderType=cv2.BORDER_REPLICATE), np.float32)
    if (measured := _measure(level, low, _thickest(depth))) is None:
        return None
    caps, thick = measured
    back = cv2.warpAffine(np.minimum(level, caps), shear, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(back, np.float32), thick


def _measure(level: Field, low: float, thickest: float) -> tuple[Field, float] | None:
    """The usual depth of each level line, at its pixels, and the thickness of the thickest; None if there are no lines.

    A stroke along a line is deeper than the line. One line counts only if it crosses the whole page.
    """
    width = level.shape[1]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((level > 0.7 * low).astype(np.uint8))
    caps, thickness = np.zeros(len(stats), np.float32), [1.0]
    for label in 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_WIDTH] >= SHORTEST * width):
        left, top, wide, high, _ = stats[label].tolist()
        box = (slice(top, top + high), slice(left, left + wide))
        inside = level[box][labels[box] == label]
        full = float(np.percentile(inside, 75))
        thick = float((inside > 0.5 * full).sum()) / wide - 2  # the maximum filter has added two rows
        straight = high < thick + 4 + STRAIGHT * wide or wide > 0.9 * width
        if straight and thick < thickest:
            caps[label] = full
            thickness.append(thick)
    found = stats[caps > 0, cv2.CC_STAT_WIDTH]
    whole = found.size > 1 or found.max(initial=0) > 0.9 * width
    return (caps[labels], max(thickness)) if whole else None


def _slope(depth: Field, low: float) -> float | None:
    """The slope along which the thin ink lies in the fewest rows; None if no row has ink along most of it."""
    width = depth.shape[1]
    ink = (depth > low).astype(np.uint8)
    thick = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((int(_thickest(depth)) + 4, 1), np.uint8))
    thin = ink - thick
    if cv2.countNonZero(thin) < SHORTEST * width:
        return None
    points = np.asarray(cv2.findNonZero(thin)).reshape(-1, 2)
    columns, rows = points[:: len(points) // POINTS + 1].T
    slopes = np.linspace(-STEEPEST, STEEPEST, 41)
    sheared = (rows - columns * slopes[:, None] + STEEPEST * width).astype(np.int64)
    profiles = [np.bincount(heights) for heights in sheared]
    best = int(np.argmax([np.dot(profile, profile) for profile in profiles]))
    along = columns[np.abs(sheared[best] - np.argmax(profiles[best])) <= 1]
    return float(slopes[best]) if np.count_nonzero(np.bincount(along * 20 // width)) >= SHORTEST * 20 else None


def _thickest(depth: Field) -> float:
    """Of a line, in pixels."""
    return float(max(4, THICKEST * min(depth.shape)))
