"""Finds the ink of a digit on paper, in photographs and scans of any size: step 5 of the rule in `images.py`.

1. An image that has only two levels, paper and one piece of ink, is clean. Its ink is taken as it is.
2. From other images the light is removed. The background is the image without structures narrower than a stroke can be (a
   morphological closing). The edge of a shadow or of a table is a step, and stays in the background. The depth of the ink is
   how much darker than this background it is.
3. Lines that span the page are removed, and the strokes that cross them are repaired.
4. The connected pieces are sorted. The digit is the heaviest piece that does not touch the border, with the pieces close to it.
   Specks, frames, and what touches the border are dropped, unless they are all there is.
5. A stroke much thinner or thicker than those of MNIST is widened or thinned.

All sizes are relative to the image.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.containers import Reason, Rejection

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Field = NDArray[np.float32]

LONGER_SIDE = 400
"""An image is analysed at no more than this many pixels."""
LOOK_AGAIN = 64
"""A digit that is smaller than this in the analysis is cut out of the image and analysed again."""
CUT_SIDE = 100
"""Pixels of the longer side of a digit when the width of its stroke is measured."""
WIDEST_STROKE, USUAL_STROKE = 0.2, 0.08
"""Widths of structures that count as ink, as shares of the image's shorter side."""
SIGMAS = 4.0
"""Ink is this many standard deviations of the background's noise away from it."""
QUANTILES = {56: 0.15, 62: 0.31, 70: 0.52}
"""Percentages of the normal distribution, and their standard deviations. Much ink raises the higher ones."""
FAINTEST = 0.035
"""Ink is at least this much darker than its background, as a share of it."""
UNEVEN = 40
"""Paper that differs from its usual level by more than this share of 255 of the ink's contrast is not clean."""
FULLEST = 0.7
"""Share of its box that a digit fills at most, if it is no upright 1."""
CLEAR_SKEW = 0.75
"""Share of the third moment's absolute value."""
THICKEST_LINE = 0.03
"""Of a ruled line, as a share of the page's shorter side."""
LINES_FROM = 60
"""Pixels of the shorter side of an image from which on lines are told from strokes."""
STRAIGHT = 0.02
"""A line bends by no more than this share of its length, unless it crosses the whole page."""
STEEPEST_LINE = 0.2
"""Greatest slope of a ruled line."""
SHORTEST_LINE, LINE_RUN = 0.6, 0.3
"""Of a ruled line, and of its longest part without a gap, as a share of the page."""
SMALLEST_DIGIT = 0.025
"""As a share of the image's longer side."""
FAINTEST_DIGIT = 1.25
"""Mean depth of a digit's ink over the level of the noise."""
SEVERAL_FROM = 12
"""Pixels of the height from which on pieces are told from specks."""
THIN, THICK = 0.09, 0.19
"""Usual widths of strokes in MNIST, as a share of the digit's longer side."""


@dataclass(frozen=True)
class Piece:
    """A connected piece of ink."""

    label: int
    left: int
    top: int
    width: int
    height: int
    area: int
    mass: float
    """Sum of the depths."""
    touches: bool
    """Whether it touches the border of the image."""

    @property
    def side(self) -> int:
        """The longer side."""
        return max(self.width, self.height)


def read(grey: Grey, one_digit: bool) -> Field | Rejection:
    """The ink of the digit, float32[H, W] from 0 to 255; or a Rejection: no ink, or with `one_digit`, several digits."""
    small = _shrink(grey, LONGER_SIDE)
    ink = _clean_ink(small)
    return _look(grey, small, _has_light_ink(small), one_digit, again=True) if ink is None else ink


def _shrink(grey: Grey, side: int) -> Grey:
    scale = side / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _clean_ink(small: Grey) -> Field | None:
    """The ink of an image that has only two levels, and one piece of ink; None for other images."""
    mask = np.asarray(cv2.threshold(small, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1], np.uint8)
    if _border(mask).mean() > 0.5:
        mask, small = 1 - mask, 255 - small
    if not mask.any() or mask.all():
        return None
    paper = float(np.median(_border(small)[_border(mask) == 0].astype(np.float32)))
    ink = np.clip(small - paper, 0, None).astype(np.float32)
    ink *= 255 / float(ink.max())
    away = cv2.dilate(mask, np.ones((5, 5), np.uint8)) == 0
    uneven = np.abs(small[away] - paper).max(initial=0) > UNEVEN / 255 * np.ptp(small)
    if uneven or not _is_one_stroke(mask, ink):
        return None
    rows, columns = np.nonzero(ink > 64)
    return _normal_stroke(ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


def _is_one_stroke(mask: Grey, ink: Field) -> bool:
    """Whether the mask is one piece of about the same ink, and no shadow, strip, grid or box."""
    sides = [float(side.mean()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])]
    touches = max(sides) > 0
    if touches and min(sides) == 0 and max(sides) > 0.95:  # a strip; a digit cut to its ink touches all sides
        return False
    solid = mask.astype(np.float32)
    piece = _pieces(solid, 0.5)[1][0]
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    thickest = 0.42 if touches and min(mask.shape) >= LINES_FROM else 0.65
    sheet = piece.area > FULLEST * piece.width * piece.height and min(piece.width, piece.height) > 0.5 * piece.side
    if sheet and min(mask.shape) >= LINES_FROM:
        return False
    if piece.mass < 0.998 * mask.sum() or 2 * distance.max() > thickest * piece.side:
        return False
    if np.median(ink[distance >= 0.6 * distance.max()]) < 0.75 * 255 or np.median(ink[mask > 0]) < 0.55 * 255:
        return False
    if touches and (_lines(solid, 0.5)[1] or _lines(np.ascontiguousarray(solid.T), 0.5)[1]):
        return False
    return _without_box(solid, 0.5) is solid


def _border(image: Grey) -> Grey:
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def _has_light_ink(small: Grey) -> bool:
    """Whether the ink is lighter than the paper.

    The sign of the levels' skewness around their local median says so, if the skewness is strong. Else three signs vote: it,
    the skewness in the middle of the image, and whether narrow light structures are stronger than narrow dark ones.
    """
    tiny = _shrink(small, 96)
    size = 2 * int(min(tiny.shape) * 0.18) + 1
    local = _unpad(cv2.medianBlur(_pad(tiny, size), size), size)
    cubes = (tiny.astype(np.float32) - local) ** 3
    if abs(cubes.sum()) > CLEAR_SKEW * np.abs(cubes).sum():
        return bool(cubes.sum() > 0)
    height, width = tiny.shape
    middle = cubes[height // 5 : height - height // 5, width // 5 : width - width // 5]
    half = np.asarray(cv2.GaussianBlur(_shrink(small, LONGER_SIDE // 2), (0, 0), 1.0), np.uint8)
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


def _look(grey: Grey, small: Grey, light_ink: bool, one_digit: bool, again: bool) -> Field | Rejection:
    """Find the digit in `small`, which is `grey` or a reduced copy of it. If the digit is small, look `again`, closer."""
    depth = _depth(255 - small if light_ink else small, light_ink)
    low = _noise_level(depth)
    depth = _without_box(_without_frames(depth, low), low)
    depth = _without_lines(_without_lines(depth, low).T, low).T
    labels, pieces = _pieces(depth, low)
    chosen = _digit(pieces)
    if not chosen or _is_speck(chosen[0], low, small.shape):
        return Rejection(Reason.BLANK_IMAGE, "has no ink that could be a digit")
    if one_digit and (others := _other_digits(pieces, chosen[0])):
        return Rejection(Reason.SEVERAL_DIGITS, f"has {1 + others} separate pieces of ink as large as a digit")
    left, top = min(p.left for p in chosen), min(p.top for p in chosen)
    right, bottom = max(p.left + p.width for p in chosen), max(p.top + p.height for p in chosen)
    side = max(right - left, bottom - top)
    scale = max(grey.shape) / max(small.shape)
    if again and side < LOOK_AGAIN and scale > 1.5:
        margin = 0.5 * side
        rows = slice(max(0, int((top - margin) * scale)), int((bottom + margin) * scale) + 1)
        columns = slice(max(0, int((left - margin) * scale)), int((right + margin) * scale) + 1)
        cut = grey[rows, columns]
        closer = _look(cut, _shrink(cut, LONGER_SIDE // 2), light_ink, one_digit=False, again=False)
        if not isinstance(closer, Rejection):
            return closer
    mask = np.isin(labels, [p.label for p in chosen])
    return _ink(depth, mask, low, (slice(top, bottom), slice(left, right)))


def _is_speck(piece: Piece, low: float, shape: tuple[int, ...]) -> bool:
    """Whether a piece is too small for a digit, or hardly darker than the noise of the paper."""
    return piece.side < SMALLEST_DIGIT * max(shape) or piece.mass < FAINTEST_DIGIT * low * piece.area


def _other_digits(pieces: list[Piece], main: Piece) -> int:
    """The number of pieces like the main one, that are apart from it and not thin lines."""
    if main.height < SEVERAL_FROM or _is_upright_line(main):
        return 0
    return sum(_like(piece, main) and _apart(piece, main) for piece in pieces)


def _is_upright_line(piece: Piece) -> bool:
    return piece.width < 0.2 * piece.height


def _like(piece: Piece, main: Piece) -> bool:
    """Whether a piece is as large and as dark as the main one, and drawn with a pen of about the same width."""
    darkness = piece.mass * main.area / (main.mass * piece.area)
    return (
        not piece.touches
        and not _is_upright_line(piece)
        and 0.6 < piece.height / main.height < 1.6
        and piece.mass > 0.35 * main.mass
        and 0.75 < darkness < 1.33
    )


def _apart(piece: Piece, main: Piece) -> bool:
    """Whether two pieces are no parts of one digit. Parts that are as broad as digits are seldom side by side."""
    across, down = _gaps(piece, main)
    broad = all(part.width > 0.4 * part.height for part in (piece, main)) and 0.7 < piece.height / main.height < 1.4
    return across > 0.15 * main.side or down > 0.4 * main.side or (broad and across > 0.03 * main.side)


def _gaps(piece: Piece, main: Piece) -> tuple[int, int]:
    """The space between two boxes across and down; negative if they overlap."""
    across = max(piece.left, main.left) - min(piece.left + piece.width, main.left + main.width)
    down = max(piece.top, main.top) - min(piece.top + piece.height, main.top + main.height)
    return across, down


def _depth(dark: Grey, light_ink: bool) -> Field:
    """How much darker than the background each pixel is, as a share of it.

    The narrower the structures are that count as ink, the less of a shadow does. So they are narrow, unless this loses ink.
    """
    wide, narrow = (_depth_at(dark, light_ink, share) for share in (WIDEST_STROKE, USUAL_STROKE))
    full = 0.7 * float(np.percentile(wide[::2, ::2], 99.8))
    return narrow if narrow[narrow > full].sum() > 0.8 * wide[wide > full].sum() else wide


def _depth_at(dark: Grey, light_ink: bool, share: float) -> Field:
    smooth = np.asarray(cv2.GaussianBlur(dark, (0, 0), 0.8), np.uint8) if min(dark.shape) > 100 else dark
    size = _odd(min(dark.shape) * share)
    closed = cv2.morphologyEx(_pad(smooth, size), cv2.MORPH_CLOSE, np.ones((size, size), np.uint8))
    background = _unpad(closed, size).astype(np.float32)
    whole = 255.0 if light_ink else np.maximum(background, 0.3 * float(np.percentile(background[::4, ::4], 95)) + 1)
    depth = (background - smooth) / whole
    return np.asarray(np.maximum(depth - np.median(depth[::3, ::3]), 0), np.float32)


def _noise_level(depth: Field) -> float:
    """The depth above which a pixel may be ink."""
    levels = np.percentile(depth[::3, ::3], list(QUANTILES))
    return max(
        FAINTEST, SIGMAS * min(float(level) / deviations for level, deviations in zip(levels, QUANTILES.values(), strict=True))
    )


def _without_frames(depth: Field, low: float) -> Field:
    """The depth without pieces that enclose another large one."""
    labels, pieces = _pieces(depth, low)
    frames = [outer.label for outer in pieces[:8] if any(_encloses(outer, inner) for inner in pieces[:8])]
    return np.where(np.isin(labels, frames), np.float32(0), depth) if frames else depth


def _without_lines(depth: Field, low: float) -> Field:
    """The depth without lines that cross the page from left to right, and with the strokes repaired that cross the lines."""
    level, thick = _lines(depth, low)
    if not thick:
        return depth
    rest = np.maximum(depth - 1.2 * level, 0)
    size = round(thick) + 5
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    repaired = np.minimum(cv2.morphologyEx(rest, cv2.MORPH_CLOSE, element), depth)
    return np.asarray(np.where(level > 0, repaired, rest), np.float32)


def _without_box(depth: Field, low: float) -> Field:
    """The depth without the box that the main piece is joined to, or without the line that the digit stands on.

    A box has lines on three sides of the piece or more. A piece with a line below is much broader than a digit.
    """
    if min(depth.shape) < LINES_FROM or not (pieces := _digit(_pieces(depth, low)[1])):
        return depth
    piece = pieces[0]
    rows, columns = slice(piece.top, piece.top + piece.height), slice(piece.left, piece.left + piece.width)
    cut = np.ascontiguousarray(depth[rows, columns])
    across, thick = _lines(cut, low)
    if piece.touches or not thick:
        return depth
    down = _lines(np.ascontiguousarray(cut.T), low)[0].T
    edge = max(3, round(0.15 * min(cut.shape)))
    sides = [across[:edge], across[-edge:], down[:, :edge], down[:, -edge:]]
    boxed = sum(bool((side > 0).any()) for side in sides) >= 3
    if not boxed and piece.width < 1.5 * piece.height:
        return depth
    rest = _without_lines(cut, low)
    if boxed:
        rest = _without_lines(rest.T, low).T
    if rest.sum() < 0.1 * piece.mass:
        return depth
    left = depth.copy()
    left[rows, columns] = rest
    return left


def _lines(depth: Field, low: float) -> tuple[Field, float]:
    """The depth of lines that cross the page from left to right, and their thickness; 0 if there are none."""
    height, width = depth.shape
    if min(height, width) < LINES_FROM or (slope := _slope(depth, low)) is None:
        return np.zeros_like(depth), 0
    extra = int(abs(slope) * width) + 1
    shear = np.array([[1, 0, 0], [-slope, 1, extra if slope > 0 else 0]], np.float32)
    level = np.asarray(cv2.warpAffine(depth, shear, (width, height + extra)), np.float32)
    wider = cv2.blur(cv2.dilate(level, np.ones((3, 1), np.uint8)), (max(3, width // 40), 1))
    run = np.ones((1, max(3, int(width * LINE_RUN))), np.uint8)
    level = np.asarray(cv2.morphologyEx(wider, cv2.MORPH_OPEN, run, borderType=cv2.BORDER_REPLICATE), np.float32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((level > 0.7 * low).astype(np.uint8))
    caps, thickness = np.zeros(len(stats), np.float32), np.zeros(len(stats), np.float32)
    for label in 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_WIDTH] >= SHORTEST_LINE * width):
        left, top, wide, high, _ = stats[label].tolist()
        box = (slice(top, top + high), slice(left, left + wide))
        inside = level[box][labels[box] == label]
        full = float(np.percentile(inside, 75))
        thick = float((inside > 0.5 * full).sum()) / wide - 2  # the maximum filter has added two rows
        straight = high < thick + 4 + STRAIGHT * wide or wide > 0.9 * width
        if straight and thick < max(4, THICKEST_LINE * min(height, width)):
            caps[label], thickness[label] = full, thick  # a stroke along a line is deeper than the line
    found = stats[caps > 0, cv2.CC_STAT_WIDTH]
    if not found.size or (found.size < 2 and found.max() < 0.9 * width):
        return np.zeros_like(depth), 0
    back = cv2.warpAffine(
        np.minimum(level, caps[labels]), shear, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return np.asarray(back, np.float32), max(1.0, float(thickness.max()))


def _slope(depth: Field, low: float) -> float | None:
    """The slope along which the ink lies in the fewest rows; None if no row has enough ink for a line."""
    width = depth.shape[1]
    rows, columns = np.nonzero(depth > low)
    step = len(rows) // 2500 + 1
    rows, columns = rows[::step], columns[::step]
    if len(rows) * step < SHORTEST_LINE * width:
        return None
    slopes = np.linspace(-STEEPEST_LINE, STEEPEST_LINE, 41)
    profiles = [np.bincount((rows - columns * slope + STEEPEST_LINE * width).astype(np.int64)) for slope in slopes]
    best = int(np.argmax([(profile.astype(np.float64) ** 2).sum() for profile in profiles]))
    return float(slopes[best]) if profiles[best].max() * step >= 0.5 * SHORTEST_LINE * width else None


def _pieces(depth: Field, low: float) -> tuple[NDArray[np.int32], list[Piece]]:
    """The labels of the connected pieces of ink, int32[H, W], and the pieces, the heaviest first."""
    depth = np.ascontiguousarray(depth)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((depth > low).astype(np.uint8))
    inside = labels > 0
    masses = np.bincount(labels[inside], weights=depth[inside], minlength=len(stats))
    height, width = depth.shape
    pieces = []
    for label in np.argsort(-masses[1:])[:40] + 1:
        left, top, wide, high, area = stats[label].tolist()
        touches = left == 0 or top == 0 or left + wide == width or top + high == height
        pieces.append(Piece(int(label), left, top, wide, high, area, float(masses[label]), touches))
    return np.asarray(labels, np.int32), pieces


def _encloses(outer: Piece, inner: Piece) -> bool:
    return (
        outer.left < inner.left
        and outer.top < inner.top
        and inner.left + inner.width < outer.left + outer.width
        and inner.top + inner.height < outer.top + outer.height
        and inner.height > 0.25 * outer.height
        and inner.mass > 0.1 * outer.mass
    )


def _digit(pieces: list[Piece]) -> list[Piece]:
    """The pieces that form the digit, the main one first."""
    for usual in (_is_inside, _is_no_dash):
        fit = [piece for piece in pieces if usual(piece)]
        if fit and fit[0].mass >= 0.1 * pieces[0].mass:
            pieces = fit
    return [piece for piece in pieces if piece is pieces[0] or _belongs(piece, pieces[0])]


def _is_inside(piece: Piece) -> bool:
    return not piece.touches


def _is_no_dash(piece: Piece) -> bool:
    return piece.height > 0.12 * piece.width


def _belongs(piece: Piece, main: Piece) -> bool:
    """Whether a piece is so large, and so close to the main one, that it is a part of the same digit."""
    if piece.side < 0.12 * main.side or piece.mass < 0.02 * main.mass:
        return False
    across, down = _gaps(piece, main)
    return across <= 0.12 * main.side and down <= (0.3 if across < -0.5 * piece.width else 0.12) * main.side


def _ink(depth: Field, mask: Mask, low: float, box: tuple[slice, slice]) -> Field:
    """The digit's ink, cut to its box, with the stroke's width normalised, from 0 to 255."""
    depth, mask = depth[box], mask[box]
    full = float(np.percentile(depth[mask], 80))
    floor = max(0.5 * low, 0.2 * full)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    ink = np.clip((depth - floor) / (0.8 * full - floor), 0, 1) * near
    return _normal_stroke(np.asarray(ink * 255, np.float32))


def _stroke_width(ink: Field) -> float:
    """The mean width of the strokes, as a share of the longer side."""
    mask = (ink > 127).astype(np.uint8)
    distance = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
    inside = distance[distance > 0]
    return 4 * (float(inside.mean()) - 0.5) / max(ink.shape) if inside.size else 0.0


def _normal_stroke(ink: Field) -> Field:
    """Ink cut to its box, with a stroke that is as wide as in MNIST."""
    scale = CUT_SIDE / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    large = np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.float32)
    width = _stroke_width(large)
    change = round((min(max(width, THIN), THICK) - width) * CUT_SIDE)
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
